"""The SHA-256 of files that were hashed before, so that large files are not read again for it.

A file is known by its path, size, inode number and times. The inode's change time shows every
change of a file, even if the modification time was restored afterwards.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from cgconvert.io.cache import read_entry, write_entry
from cgconvert.io.system.files import wait_for_clock
from cgconvert.model.decoder import Checkpoint
from cgconvert.write.hashing import combined_sha256, file_sha256

__all__ = ["known_sha256", "known_source", "remember_sha256"]

KIND = "hashes"
"""What the cache calls them."""

SMALL_BYTES = 1 << 20
"""A file of fewer bytes is hashed again whenever its hash is needed."""


def known_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file: the remembered one if the file is unchanged since, or a new one."""
    if path.stat().st_size < SMALL_BYTES:
        return file_sha256(path)
    entry = _entry(path)
    stored = read_entry(KIND, entry)
    if stored is not None:
        return stored.hex()
    wait_for_clock(path)
    entry = _entry(path)
    sha256 = file_sha256(path)
    if entry == _entry(path):  # otherwise it was changed while it was read
        write_entry(KIND, entry, bytes.fromhex(sha256))
    return sha256


def remember_sha256(path: Path, sha256: str) -> None:
    """Remember the SHA-256 of a file that is as it was when it was hashed."""
    if path.stat().st_size >= SMALL_BYTES:
        write_entry(KIND, _entry(path), bytes.fromhex(sha256))


def known_source(checkpoint: Checkpoint) -> dict[str, Any]:
    """Hash the files of a checkpoint as `hash_checkpoint` does, without its checks of archives."""
    files = [
        {"name": path.name, "bytes": path.stat().st_size, "sha256": known_sha256(path)}
        for path in checkpoint.files
    ]
    return {"files": files, "sha256": combined_sha256(files)}


def _entry(path: Path) -> str:
    """The name of the entry for a file as it is now."""
    s = path.stat()
    identity = [str(path.resolve()), s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns]
    return hashlib.sha256(repr(identity).encode(errors="surrogateescape")).hexdigest()
