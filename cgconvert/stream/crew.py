"""Who works on chunks: forked processes, or one thread where there is little to do.

Encoding is hundreds of short torch operations a chunk. Threads would wait for each other's hold of
Python's lock more than they compute; a forked process has the plan already, waits for nobody, and
writes to the file itself, so that nothing but numbers goes between processes.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

import torch

from cgconvert.errors import OutputError
from cgconvert.stream.plan import Plan, cores

__all__ = ["Crew"]

SMALL_BYTES = 64 << 20
"""What is written in less time than processes take to begin and end."""

PR_SET_PDEATHSIG = 1


class Crew:
    """`job(task)` for many tasks at once, from its construction to `close`.

    Processes are forked at once: whoever makes a crew has no threads and no locks yet, or says that
    they are not to be `forked`. They leave with their parent, however it ends, and are not
    interrupted: the parent is.
    """

    def __init__(self, job: Callable[..., Any], plan: Plan, forked: bool = True) -> None:
        self._job = job
        self._pool: Executor
        count = cores()
        alone = count == 1 or plan.nbytes < SMALL_BYTES
        self._forked = forked and sys.platform == "linux" and not alone
        if self._forked:
            self._pool = ProcessPoolExecutor(
                count,
                multiprocessing.get_context("fork"),
                initializer=_enlist,
                initargs=(job, os.getpid()),  # by the fork, not pickled
            )
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # here: a forked process cannot end threads it does not have
            try:
                self._pool.submit(int).result()
            finally:
                torch.set_num_threads(threads)
        else:  # elsewhere a fork is not safe
            self._pool = ThreadPoolExecutor(1 if alone else count)

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise OutputError(
                "a process was killed from outside, most likely for want of memory; "
                "OMP_NUM_THREADS=1 takes the least"
            ) from error

    def submit(self, *task: Any) -> Future[Any]:
        return self._pool.submit(_work if self._forked else self._job, *task)


_job: Callable[..., Any]


def _enlist(job: Callable[..., Any], parent: int) -> None:
    global _job  # of this process alone
    _job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _work(*task: Any) -> Any:
    return _job(*task)
