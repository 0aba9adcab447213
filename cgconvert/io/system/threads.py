"""The number of threads that torch computes with, found without importing torch."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path

from cgconvert.errors import UsageError

__all__ = ["check_environment", "thread_count", "threads_of_environment"]

THREADS = re.compile(r"\s*([1-9][0-9]{0,4})\s*(,\s*[1-9][0-9]{0,4}\s*)*")
"""The value of OMP_NUM_THREADS: a number for each level of parallel regions (OpenMP 5.2)."""

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
        if threads := threads_of_environment(variable):
            return min(threads, _core_count())  # MKL takes no more threads than cores
    return _core_count()


def threads_of_environment(variable: str = "OMP_NUM_THREADS") -> int | None:
    """The number of threads that a variable of the environment sets; None if it sets none."""
    match = THREADS.fullmatch(os.environ.get(variable, ""))
    return int(match[1]) if match else None


def check_environment() -> None:
    """Raise UsageError if OMP_NUM_THREADS is no number, of which libgomp would print a line."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    if value.strip() and threads_of_environment() is None:
        raise UsageError("OMP_NUM_THREADS is not a number of threads; set it to 4, or not at all")


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
