"""Links to files that are open: they lead to what was opened, whatever takes its name later."""

from __future__ import annotations

import contextlib
import os
import shutil
from enum import Enum, auto
from io import FileIO
from pathlib import Path

__all__ = ["Link", "got_second_name", "link_to_open_file"]

PROCESSES = Path("/proc")
"""The folder in which Linux shows each process and its open files (proc(5): /proc/pid/fd)."""


_second_names: set[tuple[int, int]] = set()
"""Device and inode of the files that got a second name here."""


class Link(Enum):
    """The kinds of links that `link_to_open_file` makes."""

    DESCRIPTOR = auto()
    NAME = auto()
    COPY = auto()


def link_to_open_file(
    path: Path, descriptor: int, target: Path, *, by_descriptor: bool = True
) -> Link:
    """Make `path` lead to a file that is open, even if another file takes its name later.

    Args:
        path: The new name.
        descriptor: The open file. It has to stay open for a link to the descriptor.
        target: The name under which it was opened.
        by_descriptor: Whether the link may lead to the descriptor. Other processes of this user
            can follow such a link too.

    Returns:
        What was made: a link to the descriptor, a second name of the same file where the system
        has no such links, or a copy where the file is on another disk or belongs to another user.
    """
    status = os.fstat(descriptor)
    if by_descriptor:
        open_file = PROCESSES / str(os.getpid()) / "fd" / str(descriptor)
        with contextlib.suppress(OSError, NotImplementedError):
            if os.path.samestat(open_file.stat(), status):
                path.symlink_to(open_file)
                return Link.DESCRIPTOR
    with contextlib.suppress(OSError, NotImplementedError):
        path.hardlink_to(target.resolve())
        if os.path.samestat(path.stat(), status):
            _second_names.add((status.st_dev, status.st_ino))
            return Link.NAME
        path.unlink()
    with FileIO(descriptor, closefd=False) as source, path.open("wb") as copy:
        source.seek(0)
        shutil.copyfileobj(source, copy, 1 << 20)
    return Link.COPY


def got_second_name(device: int, inode: int) -> bool:
    """Whether this process gave a file a second name, which changed the file's change time."""
    return (device, inode) in _second_names
