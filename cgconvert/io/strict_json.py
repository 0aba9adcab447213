"""Read text and JSON files from untrusted sources, with bounds on their size and on their values.

Duplicate keys and NaN are refused, because JSON parsers disagree on what they mean.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from cgconvert.errors import InputError
from cgconvert.io.reading import MAX_FILE_BYTES, read_bytes, timed_reading
from cgconvert.io.stand_ins import HEAD_BYTES, refuse_pointer, refuse_stand_in

__all__ = ["parse_json", "read_json", "read_text"]

MAX_BYTES = 4 << 20
"""The largest JSON file but for those of a tokenizer: the index of 35,000 tensors has 3 MB."""

LARGE_FILES = frozenset(
    {"tokenizer.json", "tokenizer_config.json", "vocab.json", "added_tokens.json"}
)
"""JSON files with an entry for each token, which may have up to MAX_FILE_BYTES."""

MAX_DEPTH = 64
"""The most levels of objects and lists in each other; a model's files have ten. Whether Python can
walk through hundreds depends on the calls around, which its limit on recursion counts too."""


def read_json(path: Path, max_bytes: int | None = None) -> dict[str, Any]:
    """Read a JSON object from a regular file.

    It may have `max_bytes`; if that is None, as many as a file of its name can need.

    Raises InputError if the file is missing or too large, or if its JSON is not an object or
    contains a duplicate key, NaN or an infinity.
    """
    if max_bytes is None:
        max_bytes = MAX_FILE_BYTES if path.name in LARGE_FILES else MAX_BYTES
    text = read_text(path, max_bytes)
    if not text:
        raise InputError(f"{path}: is not valid JSON: the file is empty; fetch it again")
    refuse_stand_in(path, text[:HEAD_BYTES].encode())
    return parse_json(text, path)


def read_text(path: Path, max_bytes: int = MAX_FILE_BYTES) -> str:
    """Read a regular file of at most `max_bytes` as UTF-8. Raises InputError for any other."""
    data = read_bytes(path, max_bytes)
    refuse_pointer(path, data[:HEAD_BYTES])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error}") from None


def parse_json(text: str, where: object) -> dict[str, Any]:
    """Parse a JSON object.

    Raises InputError, which begins with `where`, if the text is not an object or contains a
    duplicate key, NaN or an infinity.
    """

    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        unique = dict(pairs)
        if len(unique) != len(pairs):
            duplicate = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise InputError(f"{where}: duplicate key in a JSON object{_place(text, duplicate)}")
        return unique

    def refuse_constant(constant: str) -> NoReturn:
        raise InputError(f"{where}: is not valid JSON: it contains {constant}")

    try:
        with timed_reading(where) as budget:
            # Each key and each value but the first stands behind one of these; those in strings
            # count too.
            budget.spend(where, "values", 1 + sum(map(text.count, ",[{:")))
            value = json.loads(
                text, object_pairs_hook=refuse_duplicates, parse_constant=refuse_constant
            )
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{where}: is not valid JSON: {reason}") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: is not a JSON object")
    if _is_deep(value):
        raise InputError(f"{where}: is not valid JSON for a model: more than {MAX_DEPTH} levels")
    return value


def _is_deep(value: dict[str, Any]) -> bool:
    """Whether there are more than MAX_DEPTH levels of objects and lists."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _place(text: str, key: str) -> str:
    """Name the line of a key that stands twice, not the key: the file may be no model's."""
    first = text.find(json.dumps(key))
    second = text.find(json.dumps(key), first + 1)
    return "" if second < 0 else f", line {text.count(chr(10), 0, second) + 1}"
