"""Names of files and folders: renames that other programs cannot see halfway.

No rename here takes the place of something else, `rename` alone excepted.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

__all__ = [
    "empty_home",
    "exchange",
    "is_writable_folder",
    "rename",
    "rename_new",
    "user_home",
]

PROCESSES = Path("/proc")
"""The folder in which Linux shows each process and its open files (proc(5): /proc/pid/fd)."""

NO_REPLACE, EXCHANGE = 1, 2
"""Flags of renameat2 on Linux (linux/fs.h)."""

MAC_EXCHANGE, MAC_NO_REPLACE = 2, 4
"""Flags of renamex_np on macOS (sys/stdio.h)."""

AT_FDCWD = -100
"""The working folder, for renameat2 (linux/fcntl.h)."""

UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
"""What a system or disk answers that has no such rename."""

IN_USE = (5, 32)
"""ERROR_ACCESS_DENIED and ERROR_SHARING_VIOLATION of Windows, for a file that a program has open.
Virus scanners and indexers open every new file for a moment."""

IN_USE_SECONDS = 2.0
"""How long a rename is tried again when a program has the file open."""


def exchange(new: Path, old: Path, replaced: Path) -> None:
    """Exchange the names of two files or folders in one step.

    If the system cannot do that, move `old` to `replaced`, then `new` to the place of `old`.

    Raises FileExistsError if something appears in the place of `old` between these two steps.
    """
    if _renamed(new, old, EXCHANGE, MAC_EXCHANGE):
        return
    rename(old, replaced)
    rename_new(new, old)


def rename(source: Path, target: Path) -> None:
    """Rename a file or folder; a file takes the place of an earlier one in one step.

    Windows renames nothing that is open, so this process must have closed it.
    """
    _when_free(lambda: source.replace(target))


def rename_new(new: Path, output: Path) -> None:
    """Rename to a place where nothing lies; raises FileExistsError if something does by now.

    Some systems and disks have no such rename. There a file gets its new name as a hard link, and
    then loses the old name; without hard links, an empty file is made at the new place and
    replaced. For a folder, an empty folder is made at the new place and replaced.
    """
    if _renamed(new, output, NO_REPLACE, MAC_NO_REPLACE):
        return
    if os.name == "nt":
        _when_free(lambda: new.rename(output))  # which replaces nothing there
    elif new.is_dir():
        output.mkdir()
        try:
            rename(new, output)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(output)) from error
    else:
        try:
            output.hardlink_to(new)
        except FileExistsError:
            raise
        except (OSError, NotImplementedError):
            _rename_over_empty(new, output)
        else:
            new.unlink()


def is_writable_folder(path: Path) -> bool:
    """Whether files can be made in a folder; Windows answers yes for every folder."""
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)


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


def user_home() -> Path | None:
    """The user's home folder; None if neither the environment nor the list of users names one."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def _when_free(move: Callable[[], object]) -> None:
    """Rename, and try again for a while if another program of Windows has the file open."""
    deadline = time.monotonic() + IN_USE_SECONDS
    while True:
        try:
            move()
            return
        except PermissionError as error:
            if getattr(error, "winerror", 0) not in IN_USE or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _renamed(new: Path, old: Path, flag: int, mac_flag: int) -> bool:
    """Rename by a call that takes a flag; return False if this system or disk has none."""
    libc: Any = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    names = os.fsencode(new), os.fsencode(old)
    if hasattr(libc, "renameat2"):
        status = libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], flag)
    elif hasattr(libc, "renamex_np"):
        status = libc.renamex_np(*names, mac_flag)
    else:
        return False
    if status and ctypes.get_errno() not in UNSUPPORTED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(old))
    return bool(status == 0)


def _rename_over_empty(new: Path, output: Path) -> None:
    """Make an empty file, then rename another over it, unless it is not that empty file by now."""
    with output.open("xb") as file:
        own = os.fstat(file.fileno())
    status = output.lstat()
    if not os.path.samestat(status, own) or status.st_size:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(output))
    rename(new, output)
