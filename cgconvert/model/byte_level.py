"""Check that a tokenizer.json computes what GPT-2's byte-level BPE does, in whatever spelling.

The tokenizers library can express the same tokenizer in several ways: a part may stand in a
Sequence of its own, the regular expression may be a Split before the ByteLevel, and a template may
add nothing. These are accepted. Every part that could change an id is refused by its name.
Format: what the tokenizers library's `Tokenizer.save` writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError, first_few

__all__ = ["check_byte_level_bpe"]

_ENDINGS = ("'s|'t|'re|'ve|'m|'ll|'d", "'(?:[sdmt]|ll|ve|re)", "(?:'s|'t|'re|'ve|'m|'ll|'d)")
_WORDS = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

GPT2_PATTERNS = frozenset(f"{endings}|{_WORDS}" for endings in _ENDINGS)
"""Spellings of GPT-2's regular expression (openai/gpt-2, src/encoder.py), which match the same."""

REMOVE_IT = "; remove it from the file if the model was trained without"

MAX_DEPTH = 4
"""The most Sequences that may stand in each other."""


def check_byte_level_bpe(path: Path, data: Mapping[str, Any]) -> None:
    """Raise InputError if ids or texts differ from those of GPT-2's kind of tokenizer.

    `data` has the contents of the tokenizer.json at `path`.
    """
    model = data.get("model")
    if not isinstance(model, dict):
        raise InputError(f"{path}: no model in it; it is not a tokenizer.json")
    added = _post_processor_faults(_parts(data.get("post_processor"), "processors"))
    faults = [
        *_model_faults(model),
        *(f"a normalizer {_label(part)}" for part in _parts(data.get("normalizer"), "normalizers")),
        *_pre_tokenizer_faults(_parts(data.get("pre_tokenizer"), "pretokenizers")),
        *added,
        *_decoder_faults(_parts(data.get("decoder"), "decoders")),
    ]
    if faults:
        raise InputError(
            f"{path}: not GPT-2's byte-level BPE, the only kind CodeGen has: "
            f"{first_few(faults, 5, separator=', ')}{REMOVE_IT if added else ''}"
        )


def _model_faults(model: Mapping[str, Any]) -> list[str]:
    """Name the settings in the section "model" of tokenizer.json that GPT-2's BPE does not use."""
    kind = model.get("type", "BPE")
    settings = (
        "dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback",
        "ignore_merges",
    )  # fmt: skip
    return [
        *([f"model {_quoted(kind)}"] if kind != "BPE" else []),
        *(name for name in settings if model.get(name)),
    ]


def _pre_tokenizer_faults(parts: list[Any]) -> list[str]:
    """Name what splits a text other than GPT-2 does.

    A ByteLevel splits by GPT-2's regular expression itself, unless its use_regex is false. A text
    that is split by it twice is split as once.
    """
    if _type(parts[-1] if parts else None) != "ByteLevel":
        return [f"pre-tokenizer {_label(parts[-1] if parts else None)}"]
    *splits, last = parts
    faults = [f"pre-tokenizer {_label(part)}" for part in splits if not _is_gpt2_split(part)]
    if last.get("add_prefix_space", True):
        faults.append("add_prefix_space")
    if not last.get("use_regex", True) and not splits:
        faults.append("use_regex false")
    return faults


def _is_gpt2_split(part: Any) -> bool:
    """Whether a part splits by GPT-2's regular expression.

    It matches every character, so that nothing lies between its matches: whether these are what is
    kept (inverted, the rest removed) or what separates (isolated) is the same.
    """
    if _type(part) != "Split" or not isinstance(part.get("pattern"), dict):
        return False
    if part["pattern"].get("Regex") not in GPT2_PATTERNS:
        return False
    return part.get("behavior") == "Isolated" or (
        part.get("behavior") == "Removed" and part.get("invert") is True
    )


def _post_processor_faults(parts: list[Any]) -> list[str]:
    """Name each token that is added to a text. Templates for pairs of texts do not matter here."""
    faults = []
    for part in parts:
        if _type(part) == "TemplateProcessing":
            faults += _template_faults(part.get("single"))
        elif _type(part) != "ByteLevel":
            tokens = [part.get(role) for role in ("cls", "sep")] if isinstance(part, dict) else []
            added = [_quoted(token[0]) for token in tokens if isinstance(token, list) and token]
            adds = f", which adds {' and '.join(added)} to every text" if added else ""
            faults.append(f"post-processor {_label(part)}{adds}")
    return faults


def _template_faults(template: Any) -> list[str]:
    """Name each token that a template adds to the text, which it has to contain once."""
    pieces: list[Any] = template if isinstance(template, list) else [None]
    added = [piece["SpecialToken"] for piece in pieces if _has(piece, "SpecialToken")]
    names = [_quoted(token.get("id") if isinstance(token, dict) else token) for token in added]
    faults = [f"post-processor 'TemplateProcessing', which adds {name} to every text"
              for name in dict.fromkeys(names)]  # fmt: skip
    texts = [piece for piece in pieces if _has(piece, "Sequence")]
    if len(texts) != 1 or len(texts) + len(added) != len(pieces):
        faults.append("post-processor 'TemplateProcessing' that is not the text once")
    return faults


def _decoder_faults(parts: list[Any]) -> list[str]:
    """Name what decodes other than bytes; a Fuse behind them only joins the texts of tokens."""
    types = [_type(part) for part in parts]
    if types in (["ByteLevel"], ["ByteLevel", "Fuse"]):
        return []
    return [f"decoder {', '.join(map(_label, parts)) or 'None'}"]


def _parts(value: Any, key: str, depth: int = 0) -> list[Any]:
    """Return the parts of a component: those of its Sequences, which list them under `key`."""
    if value is None:
        return []
    inner = value.get(key) if _type(value) == "Sequence" else None
    if not isinstance(inner, list) or depth >= MAX_DEPTH:
        return [value]
    return [part for item in inner for part in _parts(item, key, depth + 1) or [item]]


def _type(value: Any) -> object:
    """The type of a part; None if it is no object."""
    return value.get("type") if isinstance(value, dict) else None


def _has(value: Any, key: str) -> bool:
    return isinstance(value, dict) and list(value) == [key]


def _label(part: Any) -> str:
    """A part as an error shows it: its type, and the regular expression of a Split."""
    pattern = part.get("pattern") if _type(part) == "Split" else None
    shown = f" by {_quoted(next(iter(pattern.values()), ''))}" if isinstance(pattern, dict) else ""
    return f"{_quoted(_type(part) if isinstance(part, dict) else part)}{shown}"


def _quoted(value: Any) -> str:
    """The start of a value from the file, as Python writes it."""
    return repr(value)[:80]
