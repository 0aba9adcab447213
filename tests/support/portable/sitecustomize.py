"""Take away what Windows has not, before anything is imported.

    PYTHONPATH=tests/support/portable python ...

Python imports this module when it starts, so spawned workers have it too. Files behave as on
Windows as well: one that this process has open or mapped can be neither renamed nor removed, and
there are no symbolic links. What shows that a way of Linux is still used is an AttributeError, an
ImportError or a PermissionError.
"""

from __future__ import annotations

import asyncio  # noqa: F401  # its module for Linux needs fcntl; the one for Windows does not
import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

MODULES = ("fcntl", "pwd", "grp", "syslog")
"""transformers imports resource wherever it is not on Windows, so that stays."""

FUNCTIONS = (
    "fork", "forkpty", "pread", "preadv", "pwrite", "pwritev", "readv",
    "writev", "posix_fallocate", "posix_fadvise", "fdatasync", "sched_getaffinity", "sched_yield",
    "getgid", "geteuid", "getegid", "getpgid", "setsid", "killpg", "nice", "wait3",
    "wait4", "waitid", "mkfifo", "mknod", "chown", "fchown", "lchown", "memfd_create",
    "sendfile", "copy_file_range", "O_NOFOLLOW", "O_DIRECTORY", "O_CLOEXEC", "O_PATH",
    "O_SYNC", "O_DSYNC",
)  # fmt: skip
"""Names of os. What torch, psutil, pytest and Python's own library call here and not on Windows
stays: register_at_fork, sysconf, getuid, statvfs, and SIGKILL of signal."""

SIGNALS = ("SIGHUP", "SIGQUIT", "SIGUSR1", "SIGALRM", "pthread_sigmask", "alarm",
           "setitimer", "sigwait")  # fmt: skip

SHARING_VIOLATION = 32


def _take_away() -> None:
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for owner, names in ((os, FUNCTIONS), (signal, SIGNALS)):
        for name in names:
            if hasattr(owner, name):
                delattr(owner, name)
    for name in ("rename", "replace", "unlink", "remove"):
        setattr(os, name, _refusing(getattr(os, name)))
    os.symlink = _no_links


def _refusing(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(path: Any, *arguments: Any, **options: Any) -> Any:
        for name in (path, *arguments[:1]):
            # shutil.rmtree gives names relative to an open folder; the file itself is not open.
            if not options and _is_in_use(os.path.realpath(os.fsdecode(name))):
                error = PermissionError(errno.EACCES, "used by this process", os.fsdecode(name))
                error.winerror = SHARING_VIOLATION  # type: ignore[attr-defined]
                raise error
        return function(path, *arguments, **options)

    return call


def _is_in_use(path: str) -> bool:
    if "lock" in path.rpartition("/")[2]:
        # filelock takes Linux's kind of lock here, and renames its own file while it is open.
        return False
    in_use = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            in_use.add(os.path.realpath(f"/proc/self/fd/{number}"))
        except OSError:
            continue  # closed since
    with open("/proc/self/maps") as maps:
        in_use |= {line.split(maxsplit=5)[-1].strip() for line in maps}
    return any(name == path or name.startswith(f"{path}/") for name in in_use)


def _no_links(*_: Any, **__: Any) -> None:
    raise OSError(errno.EPERM, "a required privilege is not held by the client")


_take_away()
