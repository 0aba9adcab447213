"""JSON files that others wrote: bounded, and with one meaning only."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any, NoReturn

from cgconvert.errors import InputError

__all__ = ["MAX_BYTES", "parse_json", "read_json", "read_text"]

MAX_BYTES = 16 << 20
"""Four times CodeGen's tokenizer.json. The worst that fits takes 800 MB as Python objects."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a regular file.

    Raises InputError where it is missing, too large, no object, has a key twice, or NaN.
    """
    return parse_json(read_text(path), path)


def read_text(path: Path) -> str:
    """UTF-8 text of a regular file of at most MAX_BYTES. Raises InputError for any other."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # to open a FIFO waits for a writer
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
    """A JSON object from text; errors begin with `where`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise InputError(f"{where}: {twice[:200]!r} stands twice in one JSON object")
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
