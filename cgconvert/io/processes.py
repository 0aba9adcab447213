"""Work shared out among processes that are forked once and stay.

A search is thousands of short torch operations. Threads would wait for each other more than they
compute: Python's for its lock between two operations, torch's own at the end of each, for
milliseconds where another program has one of the cores. A process waits for nobody. To fork one
takes longer than to search a small matrix, so they are kept; they end with this one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, TypeVar

import torch

__all__ = ["begin", "end", "parallel_map"]

Result = TypeVar("Result")


class _Pool(NamedTuple):
    """`alive` is the end of a pipe that only this process holds: it closes when this one ends."""

    executor: ProcessPoolExecutor
    alive: int


_pools: dict[int, _Pool] = {}
"""By the process that made them: a fork of it cannot use them."""

_lock = threading.Lock()


def parallel_map(
    work: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], processes: int
) -> list[Result]:
    """`work` of every task, in their order; what goes there and comes back is pickled.

    Each task is computed on one thread, so results are the same however many processes there are.
    Callers on several threads share the processes. Where none can be forked, or one has died, this
    process does it all.
    """
    if processes > 1 and len(tasks) > 1 and sys.platform == "linux":
        pool = _pool(processes)  # elsewhere a fork with threads is not safe
        try:
            return _shared(pool.executor, work, tasks)
        except BrokenProcessPool:
            _end(pool)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [work(*task) for task in tasks]
    finally:
        torch.set_num_threads(before)


def begin(processes: int) -> None:
    """Fork them now. What this process holds then stays in memory as long as they do, also what it
    has let go of itself: so before it holds much."""
    parallel_map(int, [(), ()], processes)


def end() -> None:
    """End them, with what they are at done; more are forked when they are next needed."""
    pool = _pools.get(os.getpid())
    if pool is not None:
        _end(pool)


def _pool(processes: int) -> _Pool:
    with _lock:
        if os.getpid() not in _pools:
            watched, alive = os.pipe()
            context = multiprocessing.get_context("fork")
            executor = ProcessPoolExecutor(processes, context, _alone, (watched, alive))
            _pools[os.getpid()] = _Pool(executor, alive)
        return _pools[os.getpid()]


def _end(pool: _Pool) -> None:
    """Unless another thread has ended it, and may have begun the next."""
    with _lock:
        if _pools.get(os.getpid()) is not pool:
            return
        del _pools[os.getpid()]
    pool.executor.shutdown()
    os.close(pool.alive)


def _shared(
    executor: ProcessPoolExecutor, work: Callable[..., Result], tasks: Sequence[tuple[Any, ...]]
) -> list[Result]:
    futures = [executor.submit(work, *task) for task in tasks]
    try:
        return [future.result() for future in futures]
    except BrokenProcessPool:
        raise  # the executor ends them all, and must not find one ended
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def _alone(watched: int, alive: int) -> None:
    """In a new process: one thread, deaf to Ctrl-C, which is the parent's, and gone with it."""
    os.close(alive)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)

    def watch() -> None:
        os.read(watched, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
