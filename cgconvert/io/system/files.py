"""Open files: reads and writes at a position, space on the disk, and the way to the disk.

Where Python has no preadv or pwrite, as on Windows, a read or write moves the position of the
descriptor. So only one thread at a time may use a descriptor; two threads open the file twice.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from io import FileIO
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "FileIdentity", "allocate", "file_identity", "open_file", "open_new", "read_at",
    "sync", "sync_descriptor", "wait_for_clock", "write_at",
]  # fmt: skip

MAX_BYTES = 1 << 30
"""Bytes of one read or write. macOS refuses more than 2 GiB; others do a part of it."""

TICK_NS = 20_000_000
"""Two ticks of the slowest clock that Linux sets times of files by."""

_BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
"""Without O_BINARY, Windows changes every byte 10 that is written."""


class FileIdentity(NamedTuple):
    """Which file a path or a descriptor means, and the state of its content.

    Attributes:
        device, inode: Which file.
        size: Its bytes.
        modified: When its content was last written, in nanoseconds; its owner can set this.
        changed: When it, or its names and rights, were last changed; nobody can set this. On
            Windows this is when it was made.
    """

    device: int
    inode: int
    size: int
    modified: int
    changed: int


def file_identity(file: Path | int) -> FileIdentity:
    """Say which file lies at a path, or is open under a descriptor, and in what state."""
    status = os.fstat(file) if isinstance(file, int) else file.stat()
    return FileIdentity(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )


def wait_for_clock(path: Path) -> None:
    """Wait, after a file was changed a moment ago, until the next change gets another time.

    Without it, a change in the same tick of the clock would not show in the file's identity.
    """
    identity, now = file_identity(path), time.time_ns()
    ages = [now - identity.changed, now - identity.modified]
    youngest = min((age for age in ages if age >= 0), default=TICK_NS)
    time.sleep(max(0, TICK_NS - youngest) / 1e9)


def open_file(path: Path, *, write: bool = False, create: bool = False) -> int:
    """Open a file as bytes and return its descriptor.

    Args:
        path: The file. A link is followed for reading only.
        write: Open it for writing; what it holds stays.
        create: Open it for writing, and make it if it is missing.
    """
    if not write and not create:
        return os.open(path, os.O_RDONLY | _BINARY)
    flags = os.O_RDWR | (os.O_CREAT if create else 0) | getattr(os, "O_NOFOLLOW", 0)
    return os.open(path, flags | _BINARY, 0o644)


def open_new(path: Path) -> int:
    """Make a file that only this user can read, and open it for writing.

    Raises FileExistsError if anything has this name, a link included.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    return os.open(path, flags | _BINARY, 0o600)


def read_at(descriptor: int, memory: memoryview, offset: int) -> int:
    """Read bytes from `offset` of a file into `memory`; return their number, 0 at the file's end.

    There may be fewer than `memory` has room for.
    """
    memory = memory[:MAX_BYTES]
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [memory], offset)
    with FileIO(descriptor, closefd=False) as file:
        file.seek(offset)
        return file.readinto(memory) or 0


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`; the file grows where it is shorter."""
    while data:
        if hasattr(os, "pwrite"):
            count = os.pwrite(descriptor, data[:MAX_BYTES], offset)
        else:
            os.lseek(descriptor, offset, os.SEEK_SET)
            count = os.write(descriptor, data[:MAX_BYTES])
        data, offset = data[count:], offset + count


def allocate(descriptor: int, size: int, path: Path) -> None:
    """Give the file at `path`, open for writing, a size in bytes.

    Where space cannot be reserved the disk may still become full later, so that a write fails.

    Raises OSError (ENOSPC) if the disk has too little space.
    """
    if not size:
        return
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    missing = size - os.fstat(descriptor).st_size
    if missing > shutil.disk_usage(path.parent).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    if missing > 0:
        os.truncate(descriptor, size)


def sync(path: Path) -> None:
    """Have a file's data, or a folder's names, written to the disk.

    Windows cannot do it for a folder, and only through a descriptor that may write.
    """
    can_open_folders = hasattr(os, "O_DIRECTORY")
    if not can_open_folders and path.is_dir():
        return
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) if can_open_folders else os.O_RDWR
    descriptor = os.open(path, flags | _BINARY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_descriptor(descriptor: int) -> None:
    """Have the data of an open file written to the disk; the file must be open for writing."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(descriptor)
    else:
        os.fsync(descriptor)
