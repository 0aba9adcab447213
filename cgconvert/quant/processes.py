"""Work shared out among forked processes.

A search is thousands of short torch operations. Threads would wait for each other more than they
compute: Python's for its lock between two operations, torch's own at the end of each, for
milliseconds where another program has one of the cores. A forked process waits for nobody, and
reads the weights where they already lie.
"""

from __future__ import annotations

import math
import mmap
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

__all__ = ["share_out", "shared_bytes"]

Task = TypeVar("Task")


def shared_bytes(shape: Sequence[int]) -> torch.Tensor:
    """uint8 zeros that forked processes write to."""
    size = math.prod(shape)
    memory = mmap.mmap(-1, max(1, size))  # anonymous and shared: freed with the tensor
    return torch.frombuffer(memory, dtype=torch.uint8, count=size or -1)[:size].view(*shape)


def share_out(work: Callable[[Task], None], tasks: Sequence[Task], processes: int) -> None:
    """Call `work` for every task, in this process and as many others as make `processes`.

    Results are what it writes to shared memory. Each task is computed on one thread, so they are
    the same however many processes there are. Where others cannot be forked, one does it all.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if processes == 1 or sys.platform != "linux":  # elsewhere a fork with threads is not safe
            for task in tasks:
                work(task)
            return
        context = multiprocessing.get_context("fork")
        following, done = context.Value("l"), shared_bytes((len(tasks),))

        def run() -> None:
            while True:
                with following.get_lock():
                    index = following.value
                    following.value += 1
                if index >= len(tasks):
                    return
                work(tasks[index])
                done[index] = 1

        helpers = [
            context.Process(target=_help, args=(run,), daemon=True) for _ in range(processes - 1)
        ]
        for helper in helpers:
            helper.start()
        run()
        for helper in helpers:
            helper.join()
        for index in (done == 0).nonzero().flatten().tolist():
            work(tasks[index])  # where a helper failed: here its reason shows
    finally:
        torch.set_num_threads(before)


def _help(run: Callable[[], None]) -> None:
    try:
        run()
    except BaseException:
        os._exit(1)
    os._exit(0)  # nothing of the parent's is to be flushed or closed here
