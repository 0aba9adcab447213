"""Files of the verifier's cache: each begins with the SHA-256 of what follows."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cgconvert.io.staging import write_atomic

__all__ = ["read_entry", "write_entry"]

DIGEST_BYTES = hashlib.sha256().digest_size


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
