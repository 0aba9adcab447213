"""The number of threads that torch computes with, found without importing torch."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

__all__ = ["thread_count"]

CPU_FOLDER = Path("/sys/devices/system/cpu")


def thread_count() -> int:
    """Return torch's number of threads, or if torch is not imported yet the one it will take.

    A plan's memory depends on it, and planning does without torch.
    """
    # While another thread imports torch, the function is not there yet.
    torch_count = getattr(sys.modules.get("torch"), "get_num_threads", None)
    if torch_count is not None:
        return int(torch_count())
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # c10's get_intraop_num_threads
        first = os.environ.get(variable, "").split(",")[0].strip()
        if first.isdecimal() and int(first):
            return min(int(first), _core_count())  # MKL takes no more threads than cores
    return _core_count()


def _core_count() -> int:
    """Count the CPUs that this process may use: cores, as MKL does, where MKL is torch's."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cpus = os.sched_getaffinity(0)
    if platform.machine() != "x86_64":
        return len(cpus)
    try:
        siblings = {
            (CPU_FOLDER / f"cpu{cpu}/topology/thread_siblings_list").read_text("ascii")
            for cpu in cpus
        }
    except OSError:
        return len(cpus)
    return len(siblings)
