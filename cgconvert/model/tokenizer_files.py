"""Read a tokenizer's files into parts; every kind but GPT-2's byte-level BPE is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.io.strict_json import read_json, read_text

__all__ = ["TOKENIZER_FILES", "TokenizerParts", "read_parts"]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
"""Names of a tokenizer's files beside a checkpoint, of which some or all are there."""

_ROLES = ("eos_token", "bos_token", "unk_token", "pad_token")


@dataclass
class TokenizerParts:
    """The contents of a tokenizer's files, not yet checked as a whole.

    Attributes:
        vocabulary: Ids by token.
        merges: Pairs of tokens, by rank.
        added: Ids of added tokens, by their text.
        special: The added tokens that are special.
        end_of_text: The text of the eos token, where a configuration names one.
    """

    vocabulary: dict[str, int]
    merges: list[tuple[str, str]]
    added: dict[str, int] = field(default_factory=dict)
    special: set[str] = field(default_factory=set)
    end_of_text: str | None = None

    def add(self, where: Path, content: object, index: object, entry: Mapping[str, Any]) -> None:
        """Add an added token with the flags in `entry`. Raises InputError."""
        if not isinstance(content, str) or not content or not _is_id(index):
            raise InputError(f"{where}: an added token is {content!r} with id {index!r}")
        for flag in ("lstrip", "rstrip", "single_word"):
            if entry.get(flag):
                raise InputError(f"{where}: added token {content!r} has {flag}, which GPT-2 lacks")
        if not _is_text(content):
            raise InputError(f"{where}: added token {content!r} is not valid Unicode")
        if self.added.setdefault(content, index) != index:  # type: ignore[arg-type]
            raise InputError(
                f"{where}: added token {content!r} has the ids {self.added[content]} and {index}"
            )
        if entry.get("special"):
            self.special.add(content)


def read_parts(path: Path) -> TokenizerParts:
    """Read a tokenizer from a folder or a tokenizer.json. Raises InputError."""
    whole = path if path.is_file() else path / "tokenizer.json"
    vocab, merges = path / "vocab.json", path / "merges.txt"
    if whole.is_file():
        parts = _read_tokenizer_json(whole)
    elif vocab.is_file() and merges.is_file():
        parts = TokenizerParts(_vocabulary(vocab, read_json(vocab)), _merges_text(merges))
    elif not path.exists():
        raise InputError(f"{path}: no such file or folder; give a tokenizer's folder")
    else:
        raise InputError(
            f"{path}: no tokenizer: it needs tokenizer.json, or vocab.json and merges.txt"
        )
    if whole.name == "tokenizer.json":
        _configuration(whole.parent, parts)
    return parts


def _read_tokenizer_json(path: Path) -> TokenizerParts:
    data = read_json(path)
    model = data.get("model")
    if not isinstance(model, dict):
        raise InputError(f"{path}: no model in it; it is not a tokenizer.json")
    _check_kind(path, data, model)
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise InputError(f"{path}: merges is not a list")
    parts = TokenizerParts(_vocabulary(path, model.get("vocab")), _merges(path, merges))
    added = data.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(entry, dict) for entry in added):
        raise InputError(f"{path}: added_tokens is not a list of objects")
    for entry in added:
        parts.add(path, entry.get("content"), entry.get("id"), entry)
    return parts


def _check_kind(path: Path, data: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Refuse what would give other ids than GPT-2's tokenizer does.

    The fields are those of the tokenizers library's tokenizer.json.
    """
    before, after, back = (data.get(k) for k in ("pre_tokenizer", "post_processor", "decoder"))
    options = before if isinstance(before, dict) else {}
    byte_level = options.get("type") == "ByteLevel"
    wrong = {
        f"model {model.get('type')!r}": model.get("type", "BPE") != "BPE",
        "a normalizer": data.get("normalizer") is not None,
        f"pre-tokenizer {_kind(before)!r}": not byte_level,
        "add_prefix_space": byte_level and options.get("add_prefix_space", True),
        "use_regex false": byte_level and not options.get("use_regex", True),
        f"post-processor {_kind(after)!r}": _kind(after) not in (None, "ByteLevel"),
        f"decoder {_kind(back)!r}": _kind(back) != "ByteLevel",
    } | {
        name: bool(model.get(name))
        for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix",
                     "byte_fallback", "ignore_merges")
    }  # fmt: skip
    faults = [name for name, is_wrong in wrong.items() if is_wrong]
    if faults:
        raise InputError(
            f"{path}: not GPT-2's byte-level BPE, the only kind CodeGen has: {', '.join(faults)}"
        )


def _configuration(folder: Path, parts: TokenizerParts) -> None:
    """Add the tokens of added_tokens.json, tokenizer_config.json and special_tokens_map.json."""
    added = folder / "added_tokens.json"
    if added.is_file():
        for content, index in read_json(added).items():
            parts.add(added, content, index, {})
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        if not path.is_file():
            continue
        data = read_json(path)
        if data.get("add_prefix_space"):
            raise InputError(f"{path}: add_prefix_space is true; CodeGen's tokenizer adds none")
        decoder = data.get("added_tokens_decoder") or {}
        if not isinstance(decoder, dict):
            raise InputError(f"{path}: added_tokens_decoder is not an object")
        for index, entry in decoder.items():
            plain = index.isascii() and index.isdigit() and len(index) < 10
            number = int(index) if plain else index
            fields = entry if isinstance(entry, dict) else {}
            parts.add(path, fields.get("content"), number, fields)
        named = {role: _content(data.get(role)) for role in _ROLES}
        parts.end_of_text = parts.end_of_text or named["eos_token"]
        for token in filter(None, named.values()):
            # A token that is in no vocabulary has no id in the model.
            index = parts.added.get(token, parts.vocabulary.get(token))
            if index is not None:
                parts.add(path, token, index, {"special": True})


def _vocabulary(path: Path, data: object) -> dict[str, int]:
    if not isinstance(data, dict) or not all(_is_id(index) for index in data.values()):
        raise InputError(f"{path}: the vocabulary is not an object of tokens and ids")
    return data


def _merges_text(path: Path) -> list[tuple[str, str]]:
    lines = read_text(path).split("\n")
    return _merges(path, (line for line in map(str.rstrip, lines) if line.strip()
                          and not line.startswith("#version")))  # fmt: skip


def _merges(path: Path, entries: Iterable[object]) -> list[tuple[str, str]]:
    merges = []
    for number, entry in enumerate(entries, 1):
        pair = entry.split(" ") if isinstance(entry, str) else entry
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_token, pair)):
            raise InputError(f"{path}: merge {number} is {entry!r}, not two tokens")
        merges.append((pair[0], pair[1]))
    return merges


def _content(value: object) -> str | None:
    """The text of a token, which is a string or an object with a `content`."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _kind(value: object) -> object:
    return value.get("type") if isinstance(value, dict) else value


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_token(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
