"""cgconvert's cache: its folder, and files that each begin with the SHA-256 of what follows."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from cgconvert.io.staging import write_atomic

__all__ = ["cache_folder", "key_of", "read_entry", "write_entry"]

DIGEST_BYTES = hashlib.sha256().digest_size


def cache_folder() -> Path:
    """cgconvert's cache: the folder $CGCONVERT_CACHE, or cgconvert in the user's cache folder."""
    if folder := os.environ.get("CGCONVERT_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cgconvert"


def key_of(values: Any) -> str:
    """Return the SHA-256 (hex) of JSON values: a name for a file that depends on all of them."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def write_entry(path: Path, data: bytes) -> None:
    """Write `data` to a file of the cache, the whole file or nothing.

    An error of the file system is ignored: without the file, its data are computed again.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, hashlib.sha256(data).digest() + data, durable=False)
    except OSError:
        return


def read_entry(path: Path) -> bytes | None:
    """Return the data of a file; None if it is absent, cannot be read or is damaged."""
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    digest, data = raw[:DIGEST_BYTES], raw[DIGEST_BYTES:]
    return data if hashlib.sha256(data).digest() == digest else None
