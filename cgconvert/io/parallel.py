"""Parallel work: forked worker processes, and results in the order of their tasks.

Encoding and searching are thousands of short torch operations. Threads would wait for each other
more than they compute: for Python's lock between two operations, and at the end of each parallel
torch operation for the slowest thread, which costs milliseconds where another program has one of
the cores. A process waits for nobody. Every worker computes on one thread, so results do not depend
on the number of workers.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import ForkContext, ForkProcess
from types import TracebackType
from typing import Any, TypeVar

import torch

from cgconvert.errors import OutputError
from cgconvert.io.signals import INTERRUPTS, uninterrupted

__all__ = ["WorkerPool", "ordered_results", "parallel_map", "start_workers", "stop_workers"]

Task = TypeVar("Task")
Result = TypeVar("Result")

_lock = threading.RLock()
"""Held while workers are forked: a pool must not inherit the pipe of another that is being made."""


def ordered_results(
    submit: Callable[[Task], Future[Result]],
    tasks: Iterable[Task],
    size: Callable[[Task], int],
    limit: int,
) -> Iterator[tuple[Task, Result]]:
    """Yield every task with its result, in order, while later tasks are worked on.

    The sizes of the tasks in flight add up to at most `limit`, unless a single task is larger.
    Where a task fails, or the caller stops early, tasks not yet begun are cancelled and running
    ones waited for.
    """
    pending: deque[tuple[Task, Future[Result]]] = deque()
    total = 0
    try:
        for task in tasks:
            while pending and total + size(task) > limit:
                total -= size(pending[0][0])
                yield _first(pending)
            pending.append((task, submit(task)))
            total += size(task)
        while pending:
            yield _first(pending)
    except BrokenExecutor:
        # The executor fails all its futures itself, and crashes on one that is cancelled.
        wait([future for _, future in pending])
        raise
    finally:
        wait([future for _, future in pending if not future.cancel()])


def _first(pending: deque[tuple[Task, Future[Result]]]) -> tuple[Task, Result]:
    """Wait for the first. It stays in `pending` until then, as an interrupt may end the wait."""
    task, future = pending[0]
    result = future.result()
    pending.popleft()
    return task, result


class WorkerPool:
    """Runs `job(*task)` for many tasks at once, as long as its context is open.

    Args:
        job: The function. Forked workers inherit it, so only tasks and results are pickled.
        count: Number of workers.
        forked: Whether workers are processes, which are forked when the context is entered: the
            caller should have started no threads by then. Otherwise, and on systems other than
            Linux, where a fork is not safe, they are threads.

    Leaving the context raises OutputError where a worker was killed.
    """

    def __init__(self, job: Callable[..., Any], count: int, *, forked: bool = True) -> None:
        self._job, self._count = job, count
        self._forked = forked and sys.platform == "linux"
        self._executor: Executor | _Workers

    def __enter__(self) -> WorkerPool:
        if self._forked:
            self._executor = _Workers(self._count, self._job)
        else:
            self._executor = ThreadPoolExecutor(self._count)
        return self

    @uninterrupted()
    def close(self) -> None:
        """End the workers; tasks that are not begun are cancelled."""
        self._executor.shutdown(cancel_futures=True)

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
        return self._executor.submit(_run_job if self._forked else self._job, *task)


_kept: dict[int, _Workers] = {}
"""Workers of `parallel_map` by the process that forked them: a fork of it cannot use them."""


def parallel_map(
    function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], processes: int
) -> list[Result]:
    """Return `function(*task)` for every task, in order.

    The work is done by processes that are forked at the first call and kept, as forking takes
    longer than searching a small matrix. Function, tasks and results are pickled. Callers on
    several threads share the workers. Where processes cannot be forked, or one was killed, this
    process does all the work itself, with the same results.
    """
    if processes > 1 and len(tasks) > 1 and sys.platform == "linux":
        workers = _kept_workers(processes)
        try:
            return workers.map(function, tasks)
        except BrokenProcessPool:
            _stop(workers)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [function(*task) for task in tasks]
    finally:
        torch.set_num_threads(threads)


def start_workers(processes: int) -> None:
    """Fork the workers of `parallel_map` now.

    Memory that this process holds at the fork stays allocated until the workers end, even where
    this process frees it: so call this before loading much.
    """
    parallel_map(int, [(), ()], processes)


def stop_workers() -> None:
    """End the workers of `parallel_map` after their current tasks; the next call forks new ones."""
    workers = _kept.get(os.getpid())
    if workers is not None:
        _stop(workers)


def _kept_workers(count: int) -> _Workers:
    with _lock:
        if os.getpid() not in _kept:
            _kept[os.getpid()] = _Workers(count)
        return _kept[os.getpid()]


def _stop(workers: _Workers) -> None:
    with _lock:
        # Another thread may have stopped them already, and have forked the next.
        if _kept.get(os.getpid()) is not workers:
            return
        del _kept[os.getpid()]
    workers.shutdown()


class _Workers:
    """Forked processes that end with this one, however it ends.

    They end when the write end of a pipe closes that only this process holds. (Linux's
    PR_SET_PDEATHSIG would end them with the thread that forked them.) SIGINT, SIGTERM and SIGHUP,
    which a terminal sends to all processes of a group, are blocked in them: this process answers.
    """

    @uninterrupted()
    def __init__(self, count: int, job: Callable[..., Any] | None = None) -> None:
        with _lock:
            read_end, self._write_end = os.pipe()
            self._executor = ProcessPoolExecutor(
                count,
                _Fork(),
                initializer=_set_up,
                initargs=(job, read_end, self._write_end),  # inherited by the fork, not pickled
            )
            threads = torch.get_num_threads()
            # Set here and inherited: a forked process cannot end threads that it does not have.
            torch.set_num_threads(1)
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
            try:
                self._executor.submit(int).result()  # forks all of them
            except BaseException:
                self.shutdown()
                raise
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
                torch.set_num_threads(threads)
                os.close(read_end)

    def submit(self, function: Callable[..., Result], *task: Any) -> Future[Result]:
        return self._executor.submit(function, *task)

    def map(
        self, function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]]
    ) -> list[Result]:
        futures = [self._executor.submit(function, *task) for task in tasks]
        try:
            return [future.result() for future in futures]
        except BrokenProcessPool:
            raise  # the executor fails all futures itself, and crashes on one that is cancelled
        except BaseException:
            for future in futures:
                future.cancel()
            raise

    def shutdown(self, cancel_futures: bool = False) -> None:
        self._executor.shutdown(cancel_futures=cancel_futures)
        if self._write_end >= 0:
            os.close(self._write_end)
        self._write_end = -1


class _Worker(ForkProcess):
    """A worker that the executor can end although SIGTERM is blocked in it."""

    def terminate(self) -> None:
        self.kill()


class _Fork(ForkContext):
    Process = _Worker


_job: Callable[..., Any] | None = None
"""The job of the pool that this process is a worker of."""


def _set_up(job: Callable[..., Any] | None, read_end: int, write_end: int) -> None:
    """Prepare a new worker: keep its job and watch for the end of its parent."""
    global _job
    _job = job
    os.close(write_end)

    def end_with_parent() -> None:
        os.read(read_end, 1)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _run_job(*task: Any) -> Any:
    assert _job is not None
    return _job(*task)
