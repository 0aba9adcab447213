"""Links to files that are open: they lead to what was opened, whatever takes its name later."""

from __future__ import annotations

import contextlib
import os
import shutil
from enum import Enum, auto
from io import FileIO
from pathlib import Path

__all__ = ["Link", "link_to_open_file"]

PROCESSES = Path("/proc")
"""The folder in which Linux shows each process and its open files (proc(5): /proc/pid/fd)."""


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
            return Link.NAME
        path.unlink()
    with FileIO(descriptor, closefd=False) as source, path.open("wb") as copy:
        source.seek(0)
        shutil.copyfileobj(source, copy, 1 << 20)
    return Link.COPY
