"""Read JSON files from untrusted sources: bounded in size, and with one meaning only.

Parsers disagree on a key that stands twice and on NaN, so both are refused.
"""

from __future__ import annotations

import json
import stat
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from cgconvert.errors import InputError

__all__ = ["MAX_BYTES", "parse_json", "read_json", "read_text"]

MAX_BYTES = 16 << 20
"""Four times CodeGen's tokenizer.json. The worst file of that size takes 800 MB as objects."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a regular file of at most MAX_BYTES.

    Raises InputError where the file is missing or too large, or its JSON is no object, has a key
    twice, or has NaN or an infinity.
    """
    return parse_json(read_text(path), path)


def read_text(path: Path) -> str:
    """Read the UTF-8 text of a regular file of at most MAX_BYTES. Raises InputError for others."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for a writer
            raise InputError(f"{path}: cannot be read: not a regular file")
        if status.st_size > MAX_BYTES:
            raise InputError(
                f"{path}: {status.st_size} bytes, too large for any such file of a checkpoint"
            )
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def parse_json(text: str, where: object) -> dict[str, Any]:
    """Parse a JSON object as `read_json` does; errors begin with `where`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise InputError(f"{where}: {repeated[:200]!r} stands twice in one JSON object")
        return table

    def refuse(constant: str) -> NoReturn:
        raise InputError(f"{where}: is not valid JSON: it holds {constant}")

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{where}: is not valid JSON: {reason}") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: is not a JSON object")
    return value
