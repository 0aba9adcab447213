"""How much memory this process may still use."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

__all__ = ["available_memory", "private_memory"]

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")

ASSUMED_BYTES = 4 << 30
"""Memory of a machine that does not say how much it has."""


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of Windows (sysinfoapi.h)."""

    _fields_ = (
        ("dwLength", ctypes.c_uint32),
        ("dwMemoryLoad", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in (
            "ullTotalPhys", "ullAvailPhys", "ullTotalPageFile", "ullAvailPageFile",
            "ullTotalVirtual", "ullAvailVirtual", "ullAvailExtendedVirtual",
        )),
    )  # fmt: skip


def available_memory() -> int:
    """The bytes of memory that are free or can be freed, in the machine and in its container.

    macOS has no simple call for free memory, so half of all memory is returned there.
    """
    limits = [_linux() or _windows() or _physical() // 2 or ASSUMED_BYTES]
    try:
        limit = (CGROUP / "memory.max").read_text("ascii").strip()
        if limit.isdigit():
            limits.append(int(limit) - int((CGROUP / "memory.current").read_text("ascii")))
    except (OSError, ValueError):
        pass  # no container, or one of another kind
    return max(0, min(limits))


def _linux() -> int:
    """MemAvailable of /proc/meminfo (proc(5)), in bytes; 0 if there is none."""
    try:
        for line in MEMINFO.read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


def _windows() -> int:
    """Physical memory that is free; 0 on other systems."""
    libraries = getattr(ctypes, "windll", None)
    if libraries is None:
        return 0
    status = _MemoryStatus(dwLength=ctypes.sizeof(_MemoryStatus))
    filled = libraries.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return int(status.ullAvailPhys) if filled else 0


def _physical() -> int:
    """All physical memory of a POSIX system; 0 if it is not known."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


def private_memory(process: int) -> int:
    """The bytes of memory that a process of Linux has taken for itself; 0 if it is not there.

    Pages of files, such as weights that are mapped, do not count: the system can drop them.
    """
    try:
        fields = Path(f"/proc/{process}/statm").read_text("ascii").split()
    except OSError:
        return 0
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")
