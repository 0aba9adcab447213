"""How much memory this process may still use."""

from __future__ import annotations

from pathlib import Path

__all__ = ["available_memory"]

CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """The bytes of memory that are free or can be freed, in the machine and in its container.

    Returns 0 if the system does not say.
    """
    limits = [_machine()]
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        if limit.isdigit():
            limits.append(int(limit) - int((CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no container, or one of another kind
    return max(0, min(limits))


def _machine() -> int:
    """MemAvailable of /proc/meminfo (proc(5)), in bytes; 0 if there is none."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0
