"""The key under which the cache's entries are signed: random bytes that only this user can read.

What is signed with it was written by this user, on this disk. The key in use depends on the key
file's inode and the time when that was changed last, which nobody can set: a cache that was copied
from elsewhere together with its key is void.
"""

from __future__ import annotations

import hmac
import secrets
from pathlib import Path

from cgconvert.io.system.own_files import read_own_file, replace_own_file

__all__ = ["KEY_FILE", "ensure_key", "read_key"]

KEY_FILE = "key"
"""The name of the file in the cache's folder, outside the folders of the entries."""

KEY_BYTES = 32


def read_key(folder: Path) -> bytes | None:
    """Read the key of a cache; None if there is none, or if others could have read or made it."""
    try:
        data, status = read_own_file(folder / KEY_FILE, KEY_BYTES, closed=True)
    except OSError:
        return None
    if len(data) != KEY_BYTES:
        return None
    place = f"cgconvert cache {status.st_ino} {status.st_ctime_ns}"
    return hmac.digest(data, place.encode(), "sha256")


def ensure_key(folder: Path) -> bytes:
    """Return the key of a cache; a new one is made if it is missing, or if `read_key` refuses it.

    Of two processes that make it at once, the entries of one become void, and are made again.
    Raises OSError if it cannot be written.
    """
    if key := read_key(folder):
        return key
    replace_own_file(folder / KEY_FILE, secrets.token_bytes(KEY_BYTES))
    if not (key := read_key(folder)):
        raise PermissionError(f"{folder / KEY_FILE}: is not the user's own")
    return key
