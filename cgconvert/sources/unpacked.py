"""The record of an unpacked tarball, which tells whether its folder in the cache is as it was made.

The record is an entry of the cache, so only this user can have written it. It names the SHA-256 of
the archive and of every file of the folder. A file is known by its inode and times: the inode's
change time shows every change, even if the modification time was restored afterwards. A file that
is not known any more is hashed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.io.cache import read_entry, write_entry
from cgconvert.io.reading import open_whole
from cgconvert.io.system.own_files import is_own_file

__all__ = ["Unpacked", "identity_of", "is_as_unpacked", "read_record", "write_record"]

KIND = "archives"
"""What the cache calls the records."""

Identity = list[int]
"""Inode, size, modification time and change time of a file."""


@dataclass(frozen=True)
class Unpacked:
    """What a tarball was unpacked to.

    Attributes:
        origin: The archive's name and SHA-256, as the manifest has them.
        hashes: SHA-256 of every file of the folder, by its name.
        identities: What each of these files was known by when it was hashed.
    """

    origin: Mapping[str, str]
    hashes: Mapping[str, str]
    identities: Mapping[str, Identity]


def identity_of(path: Path) -> Identity:
    """Return what a file is known by as long as nobody changes it."""
    status = path.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def read_record(name: str) -> Unpacked | None:
    """Read the record of the folder of this name; None if there is none to believe."""
    data = read_entry(KIND, name)
    if data is None:
        return None
    try:
        return Unpacked(**json.loads(data))
    except (ValueError, TypeError):  # of another version
        return None


def write_record(folder: Path, origin: Mapping[str, str], hashes: Mapping[str, str]) -> None:
    """Record what lies in a folder now, whose files have these hashes."""
    identities = {name: identity_of(folder / name) for name in hashes}
    fields: dict[str, Any] = asdict(Unpacked(dict(origin), dict(hashes), identities))
    write_entry(KIND, folder.name, json.dumps(fields).encode())


def is_as_unpacked(folder: Path, record: Unpacked, *, all_bytes: bool = False) -> bool:
    """Whether a folder has exactly the files of its record, with the same bytes.

    They must be the user's own. Files that were touched are hashed, and recorded as they are now.

    Args:
        folder: The folder.
        record: What it was when it was unpacked.
        all_bytes: Whether to hash the files that were not touched too.
    """
    try:
        statuses = {path.name: path.lstat() for path in folder.iterdir()}
        if folder.is_symlink() or statuses.keys() != record.hashes.keys():
            return False
        if not all(map(is_own_file, statuses.values())):
            return False
        touched = {
            name for name in statuses if identity_of(folder / name) != record.identities.get(name)
        }
        hashed = statuses if all_bytes else touched
        if any(_sha256(folder / name) != record.hashes[name] for name in hashed):
            return False
    except (OSError, InputError):
        return False
    if touched:
        write_record(folder, record.origin, record.hashes)
    return True


def _sha256(path: Path) -> str:
    with open_whole(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
