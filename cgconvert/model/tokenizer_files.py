"""Read a tokenizer's files; every kind of tokenizer but GPT-2's byte-level BPE is refused."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.io.reading import MAX_FILE_BYTES, spend
from cgconvert.io.stand_ins import HEAD_BYTES, refuse_stand_in
from cgconvert.io.strict_json import read_json, read_text
from cgconvert.model.byte_level import check_byte_level_bpe
from cgconvert.model.chat_templates import read_chat_templates

__all__ = ["ROLES", "TOKENIZER_FILES", "TokenizerParts", "read_parts"]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
"""The names of a tokenizer's files. A checkpoint may have some of them or all."""

ROLES = (
    "eos_token", "bos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token",
)  # fmt: skip
"""Keys under which a configuration names special tokens; it may have others that end alike."""


MAX_TOKENS = 1 << 19
"""The most tokens of a vocabulary: twice the largest that is known."""

MATCHING_FLAGS = ("lstrip", "rstrip", "single_word")
"""Flags of an added token: it takes white space beside it, or is never part of a word."""


@dataclass
class TokenizerParts:
    """The contents of a tokenizer's files. That the parts fit together is not checked yet.

    Attributes:
        vocabulary: The id of each token.
        merges: Pairs of tokens, in order of rank.
        added: The id of each added token.
        special: The added tokens that are special.
        matching: The MATCHING_FLAGS that are set for an added token.
        roles: Tokens by the role that a configuration names, such as eos_token.
        extra_special: Special tokens that a configuration lists beside those.
        chat_templates: Jinja templates by name.
        tokenizer_class: The class of transformers that reads the files.
    """

    vocabulary: dict[str, int]
    merges: list[tuple[str, str]]
    added: dict[str, int] = field(default_factory=dict)
    special: set[str] = field(default_factory=set)
    matching: dict[str, frozenset[str]] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    extra_special: list[str] = field(default_factory=list)
    chat_templates: dict[str, str] = field(default_factory=dict)
    tokenizer_class: str = "CodeGenTokenizer"

    def add(self, where: Path, content: object, index: object, entry: Mapping[str, Any]) -> None:
        """Record an added token.

        Args:
            where: The file that has the token, for errors.
            content: The text of the token, as read.
            index: The id of the token, as read.
            entry: The flags of the token (lstrip, special and the like), as read.

        Raises:
            InputError: Text, id or flags are not valid, or the token has another id already.
        """
        shown = reprlib.repr(content)
        if not isinstance(content, str) or not content or not _is_id(index):
            raise InputError(f"{where}: an added token has no text or no whole number as its id")
        if not _is_unicode(content):
            raise InputError(f"{where}: added token {shown} is not valid Unicode")
        if self.added.setdefault(content, index) != index:  # type: ignore[arg-type]
            raise InputError(
                f"{where}: added token {shown} has the ids {self.added[content]} and {index}"
            )
        if entry.get("special"):
            self.special.add(content)
        flags = [flag for flag in MATCHING_FLAGS if flag in entry]
        if any(not isinstance(entry[flag], bool) for flag in flags):
            raise InputError(f"{where}: added token {shown} has a flag that is not true or false")
        if flags:
            self.matching[content] = frozenset(flag for flag in flags if entry[flag])


def read_parts(path: Path) -> TokenizerParts:
    """Read the parts of a tokenizer from a folder or a tokenizer.json.

    Raises InputError if files are missing, are not valid, or describe another kind of tokenizer.
    """
    tokenizer_json = path if path.is_file() else path / "tokenizer.json"
    vocab, merges = path / "vocab.json", path / "merges.txt"
    if tokenizer_json.is_file():
        parts = _read_tokenizer_json(tokenizer_json)
    elif vocab.is_file() and merges.is_file():
        parts = TokenizerParts(_check_vocabulary(vocab, read_json(vocab)), _read_merges_txt(merges))
    elif not path.exists():
        raise InputError(f"{path}: no such file or folder; give a tokenizer's folder")
    else:
        raise InputError(
            f"{path}: no tokenizer: it needs tokenizer.json, or vocab.json and merges.txt"
        )
    if tokenizer_json.name == "tokenizer.json":
        _read_configurations(tokenizer_json.parent, parts)
    return parts


def _read_tokenizer_json(path: Path) -> TokenizerParts:
    """Read the parts from a tokenizer.json of the tokenizers library."""
    data = read_json(path, MAX_FILE_BYTES)
    check_byte_level_bpe(path, data)
    model = data["model"]
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise InputError(f"{path}: merges is not a list")
    parts = TokenizerParts(_check_vocabulary(path, model.get("vocab")), _parse_merges(path, merges))
    added = data.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(entry, dict) for entry in added):
        raise InputError(f"{path}: added_tokens is not a list of objects")
    spend(path, "parts", len(added))
    for entry in added:
        parts.add(path, entry.get("content"), entry.get("id"), entry)
    return parts


def _read_configurations(folder: Path, parts: TokenizerParts) -> None:
    """Add what added_tokens.json, tokenizer_config.json and special_tokens_map.json say.

    As in transformers (tokenization_utils_base.py: _from_pretrained), special_tokens_map.json takes
    precedence over tokenizer_config.json, unless that has added_tokens_decoder.
    """
    added = folder / "added_tokens.json"
    if added.is_file():
        tokens = read_json(added)
        spend(added, "parts", len(tokens))
        for content, index in tokens.items():
            parts.add(added, content, index, {})
    paths = [folder / "tokenizer_config.json", folder / "special_tokens_map.json"]
    configurations = [read_json(path) if path.is_file() else {} for path in paths]
    for key in ("add_bos_token", "add_eos_token"):
        # Where there is tokenizer.json, its post-processor alone decides.
        if configurations[0].get(key) and not (folder / "tokenizer.json").is_file():
            raise InputError(
                f"{paths[0]}: {key} is true, so a token is added to every text, which no format "
                "here can say; set it to false if the model was trained without"
            )
    for path, data in zip(paths, configurations, strict=True):
        if data.get("add_prefix_space"):
            raise InputError(f"{path}: add_prefix_space is true; CodeGen's tokenizer adds none")
        decoder = data.get("added_tokens_decoder") or {}
        if not isinstance(decoder, dict):
            raise InputError(f"{path}: added_tokens_decoder is not an object")
        spend(path, "parts", len(decoder))
        for index, entry in decoder.items():
            is_number = index.isascii() and index.isdigit() and len(index) < 10
            number = int(index) if is_number else index  # `add` refuses what is not a number
            fields = entry if isinstance(entry, dict) else {}
            parts.add(path, fields.get("content"), number, fields)
    if "added_tokens_decoder" in configurations[0]:
        del paths[1], configurations[1]
    for path, data in zip(paths, configurations, strict=True):
        _read_roles(path, data, parts)
    for token in (*parts.roles.values(), *parts.extra_special):
        # A configuration may name a token that the tokenizer does not have: it has no id.
        index = parts.added.get(token, parts.vocabulary.get(token))
        if index is not None:
            parts.add(folder, token, index, {"special": True})
    if configurations[0].get("tokenizer_class") in ("GPT2Tokenizer", "GPT2TokenizerFast"):
        parts.tokenizer_class = "GPT2Tokenizer"
    parts.chat_templates = read_chat_templates(folder, configurations[0].get("chat_template"))


def _read_roles(path: Path, data: Mapping[str, Any], parts: TokenizerParts) -> None:
    """Add the special tokens that a configuration names; None takes a role away."""
    named = {
        key: value
        for key, value in data.items()
        if key in ROLES or (key.endswith("_token") and isinstance(value, str | dict))
    }
    extra = data.get("extra_special_tokens") or data.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        named |= extra
        extra = []
    if not isinstance(extra, list):
        raise InputError(f"{path}: the extra special tokens are no list")
    for role, value in named.items():
        token = _token_text(value)
        if token:
            parts.roles[role] = token
        elif value is None or value == "":
            parts.roles.pop(role, None)
        else:
            raise InputError(f"{path}: {role} is {reprlib.repr(value)}, not a token")
    if extra:
        parts.extra_special = [token for token in map(_token_text, extra) if token]


def _check_vocabulary(path: Path, data: object) -> dict[str, int]:
    """Return the vocabulary if it maps tokens to ids; raise InputError if not."""
    if not isinstance(data, dict) or not all(_is_id(index) for index in data.values()):
        raise InputError(f"{path}: the vocabulary is not an object of tokens and ids")
    if len(data) > MAX_TOKENS:
        raise InputError(f"{path}: {len(data):,} tokens, more than {MAX_TOKENS:,}")
    return data


def _read_merges_txt(path: Path) -> list[tuple[str, str]]:
    """Read the merges from a merges.txt: one on each line, after a line with "#version"."""
    text = read_text(path)
    refuse_stand_in(path, text[:HEAD_BYTES].encode())
    if not text:  # without merges, each byte would be a token of its own
        raise InputError(f"{path}: the file is empty; fetch it again")
    spend(path, "values", text.count("\n"))
    lines = map(str.rstrip, text.split("\n"))
    merges = _parse_merges(path, (ln for ln in lines if ln and not ln.startswith("#version")))
    if not merges:
        raise InputError(f"{path}: has no merge; fetch it again")
    return merges


def _parse_merges(path: Path, entries: Iterable[object]) -> list[tuple[str, str]]:
    """Return the pairs of tokens; an entry is a list of two, or both in a string with a space."""
    merges = []
    for number, entry in enumerate(entries, 1):
        pair = entry.split(" ") if isinstance(entry, str) else entry
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_token, pair)):
            raise InputError(f"{path}: merge {number} is not two tokens")
        merges.append((pair[0], pair[1]))
    return merges


def _token_text(value: object) -> str | None:
    """The text of a token, which is a string or an object with the text as `content`."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _is_id(value: object) -> bool:
    """Whether the value can be an id: an integer of 0 or more, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_token(value: object) -> bool:
    """Whether the value can be a token: a text of one character or more."""
    return isinstance(value, str) and value != ""


def _is_unicode(value: str) -> bool:
    """Whether a text has no lone surrogates, which JSON can have and UTF-8 cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
