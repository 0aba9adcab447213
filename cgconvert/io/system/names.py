"""Names of files and folders: renames that other programs cannot see halfway."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import os
import shutil
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

__all__ = [
    "empty_home",
    "exchange",
    "is_users",
    "is_writable_folder",
    "link_or_copy",
    "rename",
    "rename_new",
]

PROCESSES = Path("/proc")

RENAME_EXCHANGE = 2
AT_FDCWD = -100
"""Constants of renameat2 (linux/fs.h, linux/fcntl.h)."""

IN_USE = (5, 32)
"""ERROR_ACCESS_DENIED and ERROR_SHARING_VIOLATION of Windows, for a file that a program has open.
Virus scanners and indexers open every new file for a moment."""

IN_USE_SECONDS = 2.0
"""How long a rename is tried again when a program has the file open."""


def exchange(new: Path, old: Path, replaced: Path) -> None:
    """Exchange the names of two folders in one step.

    If the system cannot do that, move `old` to `replaced`, then `new` to the place of `old`.
    """
    libc: Any = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    if hasattr(libc, "renameat2"):
        status = libc.renameat2(
            AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), RENAME_EXCHANGE
        )
        if status == 0:
            return
        if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(old))
    rename(old, replaced)
    rename(new, old)


def rename(source: Path, target: Path) -> None:
    """Rename a file or folder; a file takes the place of an earlier one in one step.

    Windows renames nothing that is open, so this process must have closed it.
    """
    deadline = time.monotonic() + IN_USE_SECONDS
    while True:
        try:
            source.replace(target)
            return
        except PermissionError as error:
            if getattr(error, "winerror", 0) not in IN_USE or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def rename_new(new: Path, output: Path) -> None:
    """Rename to a place where nothing lies; raises FileExistsError if something does by now."""
    if not new.is_dir():
        try:
            output.hardlink_to(new)
        except FileExistsError:
            raise
        except (OSError, NotImplementedError):
            pass  # a disk without hard links
        else:
            new.unlink()
            return
    if os.path.lexists(output):
        raise FileExistsError(f"{output} was made meanwhile")
    rename(new, output)


def link_or_copy(path: Path, target: Path) -> None:
    """Give a file a second name; copy it where the system has no links for this user or disk.

    Windows lets only administrators and developers make symbolic links, and hard links do not
    reach another disk.
    """
    for make in (path.symlink_to, path.hardlink_to):
        with contextlib.suppress(OSError, NotImplementedError):
            make(target)
            return
    shutil.copyfile(target, path)


def is_writable_folder(path: Path) -> bool:
    """Whether files can be made in a folder; Windows answers yes for every folder."""
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)


def is_users(path: Path) -> bool:
    """Whether a path belongs to the user who runs this; Windows does not say."""
    return not hasattr(os, "getuid") or path.lstat().st_uid == os.getuid()


@cache
def empty_home() -> str:
    """Name a folder that libraries may take for the user's home, and leave nothing in.

    On Linux not even root can make a file in it. It has to be there, because torch makes its folder
    when it is imported, and fails otherwise. On other systems it is removed with this process.
    """
    if sys.platform == "linux" and PROCESSES.is_dir():
        return str(PROCESSES)
    folder = tempfile.TemporaryDirectory(prefix="cgconvert-")
    atexit.register(folder.cleanup)
    return folder.name
