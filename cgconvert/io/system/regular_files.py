"""Open a file only if it is a regular one on a disk: no pipe, device, socket or file of /proc."""

from __future__ import annotations

import os
import stat
from functools import cache
from pathlib import Path

__all__ = ["NotRegularError", "has_holes", "name_of", "open_regular", "size_of"]

MOUNTS = Path("/proc/self/mountinfo")
"""Every mounted file system with its device (proc(5): /proc/pid/mountinfo)."""

MADE_BY_THE_KERNEL = frozenset(
    {
        "autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts",
        "efivarfs", "fusectl", "mqueue", "nsfs", "proc", "pstore", "rpc_pipefs", "securityfs",
        "selinuxfs", "sysfs", "tracefs",
    }
)  # fmt: skip
"""File systems whose files the kernel makes while they are read: their sizes are false, and some
never end."""

MIN_BYTES_OF_HOLES = 256 << 20
"""A smaller file is read in no time, whatever it stores."""

_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)  # opening a pipe would wait for a writer
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


class NotRegularError(OSError):
    """A path is no regular file; the message says so."""

    def __init__(self, fault: str) -> None:
        super().__init__(0, fault)


def open_regular(path: Path) -> int:
    """Open a regular file to read it, and return its descriptor.

    It is looked at before, because to open a device can have an effect, and again afterwards,
    because it may have been exchanged.

    Raises NotRegularError if it is anything else, OSError if it cannot be opened, and ValueError
    if no file can have such a name.
    """
    _check(path.stat())
    descriptor = os.open(path, _FLAGS)
    try:
        _check(os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def size_of(descriptor: int) -> int:
    """The size of an open file in bytes."""
    return os.fstat(descriptor).st_size


def name_of(descriptor: int) -> str:
    """The absolute path of an open file, without links; "" where the system does not say.

    Only Linux says it (proc(5): /proc/pid/fd); a file that was removed has none.
    """
    try:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        is_there = path.is_absolute() and os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return ""
    return str(path) if is_there else ""


def has_holes(descriptor: int) -> bool:
    """Whether hardly anything of a large open file is stored; Windows does not say.

    Of a file without holes a compressing file system stores less than its size too, but weights
    are not compressed to a small part.
    """
    status = os.fstat(descriptor)
    blocks = getattr(status, "st_blocks", None)
    if blocks is None or status.st_size < MIN_BYTES_OF_HOLES:
        return False
    return bool(blocks * 512 < status.st_size // 64)


def _check(status: os.stat_result) -> None:
    """Raise NotRegularError unless this is the status of a regular file on a disk."""
    if not stat.S_ISREG(status.st_mode):
        raise NotRegularError("not a regular file")
    if status.st_dev in _kernel_devices():
        raise NotRegularError("not a regular file on a disk: the kernel makes it")


@cache
def _kernel_devices() -> frozenset[int]:
    """The devices of the mounted file systems in MADE_BY_THE_KERNEL; only Linux has a list."""
    devices = set()
    try:
        lines = MOUNTS.read_text("utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        fields, _, source = line.partition(" - ")
        major, _, minor = fields.split()[2].partition(":")
        if source.split()[0] in MADE_BY_THE_KERNEL:
            devices.add(os.makedev(int(major), int(minor)))
    return frozenset(devices)
