"""Read text and JSON files from untrusted sources, with a bound on their size.

Duplicate keys and NaN are refused, because JSON parsers disagree on what they mean.
"""

from __future__ import annotations

import json
import stat
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from cgconvert.errors import InputError
from cgconvert.io.progress import format_bytes
from cgconvert.io.stand_ins import HEAD_BYTES, refuse_pointer, refuse_stand_in

__all__ = ["MAX_BYTES", "parse_json", "read_json", "read_text"]

MAX_BYTES = 16 << 20
"""Four times the size of CodeGen's tokenizer.json. As Python objects, the worst JSON file of this
size takes 800 MB."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a regular file of at most MAX_BYTES.

    Raises InputError if the file is missing or too large, or if its JSON is not an object or
    contains a duplicate key, NaN or an infinity.
    """
    text = read_text(path)
    if not text:
        raise InputError(f"{path}: is not valid JSON: the file is empty; fetch it again")
    refuse_stand_in(path, text[:HEAD_BYTES].encode())
    return parse_json(text, path)


def read_text(path: Path) -> str:
    """Read a regular file of at most MAX_BYTES as UTF-8. Raises InputError for any other file."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for a writer
            raise InputError(f"{path}: cannot be read: not a regular file")
        if status.st_size > MAX_BYTES:
            raise InputError(
                f"{path}: {format_bytes(status.st_size)}, too large for any such file of a "
                "checkpoint"
            )
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        refuse_pointer(path, data[:HEAD_BYTES])
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # NUL or a lone surrogate in the name
        raise InputError(f"{path}: cannot be read: no file has such a name") from error


def parse_json(text: str, where: object) -> dict[str, Any]:
    """Parse a JSON object.

    Raises InputError, which begins with `where`, if the text is not an object or contains a
    duplicate key, NaN or an infinity.
    """

    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        unique = dict(pairs)
        if len(unique) != len(pairs):
            duplicate = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise InputError(f"{where}: duplicate key {duplicate[:200]!r} in a JSON object")
        return unique

    def refuse_constant(constant: str) -> NoReturn:
        raise InputError(f"{where}: is not valid JSON: it contains {constant}")

    try:
        value = json.loads(
            text, object_pairs_hook=refuse_duplicates, parse_constant=refuse_constant
        )
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{where}: is not valid JSON: {reason}") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: is not a JSON object")
    return value
