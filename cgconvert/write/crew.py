"""Who works on chunks: forked processes, or one thread where there is little to do.

Encoding is hundreds of short torch operations a chunk. Threads would wait for each other's hold of
Python's lock more than they compute; a forked process has the plan already, waits for nobody, and
writes to the file itself, so that nothing but numbers goes between processes.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import ForkContext, ForkProcess
from types import TracebackType
from typing import Any

import torch

from cgconvert.errors import OutputError
from cgconvert.io.uninterrupted import NUMBERS, uninterrupted
from cgconvert.write.plan import Plan, cores

__all__ = ["WorkerPool"]

SMALL_BYTES = 64 << 20
"""What is written in less time than processes take to begin and end."""

PR_SET_PDEATHSIG = 1


class _Worker(ForkProcess):
    """Ends when the pool wants it to, though SIGTERM does not reach it."""

    def terminate(self) -> None:
        self.kill()


class _Fork(ForkContext):
    Process = _Worker


class WorkerPool:
    """`job(task)` for many tasks at once, while its context lasts.

    Processes are forked when it is entered: whoever does that has no threads and no locks yet, or
    says that they are not to be `forked`. They leave with their parent, however it ends, and are
    not interrupted: the parent is.
    """

    def __init__(self, job: Callable[..., Any], plan: Plan, forked: bool = True) -> None:
        alone = cores() == 1 or plan.nbytes < SMALL_BYTES
        self._job, self._count = job, 1 if alone else cores()
        # Elsewhere than on Linux a fork is not safe.
        self._forked = forked and sys.platform == "linux" and not alone
        self._pool: Executor = ThreadPoolExecutor(self._count)

    def __enter__(self) -> WorkerPool:
        if self._forked:
            try:
                with uninterrupted():
                    self._pool = _processes(self._job, self._count)
            except BaseException:
                self._pool.shutdown()
                raise
        return self

    @uninterrupted()
    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        if isinstance(error, BrokenProcessPool):
            raise OutputError(
                "a process was killed from outside, most likely for want of memory; "
                "OMP_NUM_THREADS=1 takes the least"
            ) from error

    def submit(self, *task: Any) -> Future[Any]:
        return self._pool.submit(_work if self._forked else self._job, *task)


def _processes(job: Callable[..., Any], count: int) -> Executor:
    pool = ProcessPoolExecutor(
        count,
        _Fork(),
        initializer=_enlist,
        initargs=(job, os.getpid()),  # by the fork, not pickled
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # here: a forked process cannot end threads it does not have
    # Theirs from the first moment on: what is sent to all is the parent's to answer.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
    try:
        pool.submit(int).result()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        torch.set_num_threads(threads)
    return pool


_job: Callable[..., Any]


def _enlist(job: Callable[..., Any], parent: int) -> None:
    global _job  # of this process alone
    _job = job
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _work(*task: Any) -> Any:
    return _job(*task)
