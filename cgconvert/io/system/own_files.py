"""Folders and files of the user's own: nobody else can write in them, or exchange them.

A folder belongs to the user and is
closed to others. Every folder above it belongs to the user or to root, and others can write in it
only where the sticky bit keeps them from renaming what is not theirs, as in /tmp. A link on the way
belongs to the user or to root.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from cgconvert.io.system.names import rename
from cgconvert.io.system.owners import (
    HAS_OWNERS,
    MOST_LINKS,
    is_roots_or_users,
    is_users,
    others_can_write,
)

__all__ = [
    "close_folder",
    "fault_of_folder",
    "fault_of_place",
    "is_closed",
    "is_own_file",
    "read_own_file",
    "replace_own_file",
]

CLOSED = 0o600
"""The mode of a file that only its owner can read and write."""

_FLAGS = (
    getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


def fault_of_place(path: Path) -> str:
    """Say how others could put something else in the place of a folder; "" if they cannot.

    The folders above it and the links on the way are judged, those that exist; not the folder
    itself. `path` is absolute, without "..".
    """
    if not HAS_OWNERS:
        return ""
    place, names, links = Path(path.anchor), list(path.parts[1:]), 0
    while names:
        name = names.pop(0)
        if fault := _fault_of_parent(place):
            return fault
        if name == os.pardir:  # from a link's target
            place = place.parent
            continue
        try:
            status = (place / name).lstat()
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"{place / name}: {error.strerror}"
        if not stat.S_ISLNK(status.st_mode):
            place /= name
            continue
        if not is_roots_or_users(status):
            return f"{place / name} is a link of another user"
        links += 1
        if links > MOST_LINKS:
            return f"{place / name} is a link in a ring"
        target = (place / name).readlink()
        place = Path(target.anchor) if target.is_absolute() else place
        names = [*target.parts[target.is_absolute() :], *names]
    return ""


def fault_of_folder(path: Path) -> str:
    """Say why a folder is not the user's alone, apart from its place; "" if it is.

    A link as its last part is followed; one of another user is `fault_of_place`'s to find.
    """
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        return f"{path} is not a folder"
    if not HAS_OWNERS:
        return ""
    if not is_users(status):
        return f"{path} belongs to another user"
    if others_can_write(path, status):
        return f"others can write in {path}"
    return ""


def close_folder(path: Path) -> None:
    """Close a folder of the user's to others."""
    path.chmod(0o700)


def is_closed(path: Path) -> bool:
    """Whether others can neither list a folder nor reach what is in it."""
    return not HAS_OWNERS or not path.stat().st_mode & 0o077


def is_own_file(status: os.stat_result) -> bool:
    """Whether this is a regular file of the user's, which has no second name."""
    return stat.S_ISREG(status.st_mode) and (
        not HAS_OWNERS or (status.st_uid == os.geteuid() and status.st_nlink == 1)
    )


def read_own_file(
    path: Path, max_bytes: int, *, closed: bool = False
) -> tuple[bytes, os.stat_result]:
    """Read a file of the user's own, and return its bytes and status; a link is not followed.

    Args:
        path: The file.
        max_bytes: The most bytes that it may have.
        closed: Whether it must be closed to others, as `replace_own_file` makes it.

    Raises:
        OSError: It is not there, is not the user's own (see `is_own_file`), or is larger.
    """
    descriptor = os.open(path, os.O_RDONLY | _FLAGS)
    with open(descriptor, "rb", buffering=0) as file:  # one read: a buffer would copy it
        status = os.fstat(descriptor)
        is_closed = not HAS_OWNERS or stat.S_IMODE(status.st_mode) == CLOSED
        if not is_own_file(status) or status.st_size > max_bytes or not is_closed >= closed:
            raise PermissionError(f"{path} is not a file of the user's own")
        return file.read(), status


def replace_own_file(path: Path, data: bytes) -> None:
    """Put a file that is closed to others in the place of `path`, the whole file or nothing.

    It is written beside it under a name that nobody can foresee, and not synced to the disk. What
    was there, a link too, is replaced. Raises OSError if that fails.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, CLOSED)
        with open(descriptor, "wb") as file:
            file.write(data)
        rename(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def _fault_of_parent(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        return f"{path}: {error.strerror}"
    if not stat.S_ISDIR(status.st_mode):
        return f"{path} is not a folder"
    if not is_roots_or_users(status):
        return f"{path} belongs to another user"
    if others_can_write(path, status) and not status.st_mode & stat.S_ISVTX:
        return f"others can write in {path}"
    return ""
