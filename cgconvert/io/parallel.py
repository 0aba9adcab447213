"""Parallel work: worker processes, and results in the order of their tasks.

Encoding and searching are thousands of short torch operations. Threads would wait more than they
compute: for Python's global lock between two operations, and for the slowest thread at the end of
every parallel torch operation, which costs milliseconds if another program uses one of the cores.
Processes do not wait for each other. Every worker computes on one thread, so that results do not
depend on the number of workers.
"""

from __future__ import annotations

import os
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
from types import TracebackType
from typing import Any, TypeVar

from cgconvert.errors import OutputError
from cgconvert.io.signals import uninterrupted
from cgconvert.io.system.processes import (
    MAX_PROCESSES,
    can_fork,
    end_with_parent,
    end_with_pipe,
    worker_context,
)
from cgconvert.io.system.signals import blocked_interrupts, ignore_interrupts
from cgconvert.lazy import torch

__all__ = ["WorkerPool", "ordered_results", "parallel_map", "start_workers", "stop_workers"]

Task = TypeVar("Task")
Result = TypeVar("Result")

_lock = threading.RLock()
"""Held while workers are forked, so that a pool does not inherit the pipe of another pool that is
just being made."""


def ordered_results(
    submit: Callable[[Task], Future[Result]],
    tasks: Iterable[Task],
    size: Callable[[Task], int],
    max_size: int,
) -> Iterator[tuple[Task, Result]]:
    """Yield every task with its result, in the order of the tasks, while workers do later ones.

    If a task fails, or the caller stops iterating, tasks that have not begun are cancelled, and
    those that run are waited for.

    Args:
        submit: Hands a task to the workers.
        tasks: The tasks.
        size: The size of a task, in any unit.
        max_size: The sum of the sizes of all tasks in flight is at most this. Only a task that is
            larger itself exceeds it; it is then the only one in flight.
    """
    pending: deque[tuple[Task, Future[Result]]] = deque()
    pending_size = 0
    try:
        for task in tasks:
            while pending and pending_size + size(task) > max_size:
                pending_size -= size(pending[0][0])
                yield _pop_result(pending)
            pending.append((task, submit(task)))
            pending_size += size(task)
        while pending:
            yield _pop_result(pending)
    except BrokenExecutor:
        # The executor ends all futures with an error itself, and crashes on a cancelled one.
        wait([future for _, future in pending])
        raise
    finally:
        wait([future for _, future in pending if not future.cancel()])


def _pop_result(pending: deque[tuple[Task, Future[Result]]]) -> tuple[Task, Result]:
    """Wait for the result of the first task, then remove the task from `pending`.

    The task is removed last, because an interrupt may end the wait: the caller then cancels it.
    """
    task, future = pending[0]
    result = future.result()
    pending.popleft()
    return task, result


class WorkerPool:
    """Workers that call one function, `function(*task)`, for many tasks at once.

    The workers start when the context is entered and end when it is left.

    Args:
        function: The function. Forked workers inherit it, so that only tasks and results are
            pickled.
        count: Number of workers.
        forked: Whether workers are processes, forked when the context is entered; the caller must
            have started no threads by then. If false, workers are threads, and so they are where
            the system cannot fork. Spawned processes take longer than threads: of a model of
            350M, on two cores that other programs used too, F16 took 8, 8 and 20 s with forked
            processes, threads and spawned processes, Q8_0 12, 6 and 20 s, Q4_K_M 30, 24 and 43 s.

    Raises:
        OutputError: A worker was killed; raised when the context is left.
    """

    def __init__(self, function: Callable[..., Any], count: int, *, forked: bool = True) -> None:
        self._function, self._count = function, count
        self._is_forked = forked and can_fork()
        self._executor: Executor | _Workers

    def __enter__(self) -> WorkerPool:
        if self._is_forked:
            self._executor = _Workers(self._count, self._function)
        else:
            self._executor = ThreadPoolExecutor(self._count)
        return self

    @uninterrupted()
    def close(self) -> None:
        """End the workers after their current tasks; tasks that have not begun are cancelled."""
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
        """Let a worker call the function with the arguments `task`."""
        function = _call_inherited if self._is_forked else self._function
        return self._executor.submit(function, *task)


_kept: dict[int, _Workers] = {}
"""The workers of `parallel_map`, by the id of the process that started them. A forked copy of that
process inherits this table but cannot use the workers, so it has to start its own."""


def parallel_map(
    function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], processes: int
) -> list[Result]:
    """Return `function(*task)` for every task, in order.

    The work is done by worker processes. They start at the first call and are kept for the next,
    because starting takes longer than searching a small matrix. Function, tasks and results are
    pickled. Callers on several threads share the workers. If one was killed, this process does all
    the work itself, with the same results.
    """
    if processes > 1 and len(tasks) > 1:
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
    """Start the workers of `parallel_map` now.

    Call this before loading much: memory that this process holds when it forks stays allocated
    until the workers end, even if this process frees it.
    """
    parallel_map(int, [(), ()], processes)


def stop_workers() -> None:
    """End the workers of `parallel_map` after their tasks; the next call starts new ones."""
    workers = _kept.get(os.getpid())
    if workers is not None:
        _stop(workers)


def _kept_workers(count: int) -> _Workers:
    """Return this process's workers of `parallel_map`; start `count` of them if there are none."""
    with _lock:
        if os.getpid() not in _kept:
            _kept[os.getpid()] = _Workers(count)
        return _kept[os.getpid()]


def _stop(workers: _Workers) -> None:
    """End these workers of `parallel_map`, unless another thread has done so."""
    with _lock:
        # The other thread may already have started new ones, which must stay.
        if _kept.get(os.getpid()) is not workers:
            return
        del _kept[os.getpid()]
    workers.shutdown()


class _Workers:
    """Processes that end when this process ends, in whatever way.

    Only this process holds the write end of a pipe, and a forked worker ends when that end is
    closed. (Linux's PR_SET_PDEATHSIG is no alternative: it would end them with the thread that
    forked them.) Interrupts are blocked in the workers, because a terminal sends them to all
    processes of a group, and only this process should answer.
    """

    @uninterrupted()
    def __init__(self, count: int, function: Callable[..., Any] | None = None) -> None:
        self._write_end = -1
        if can_fork():
            self._fork(count, function)
        else:
            self._executor = ProcessPoolExecutor(
                min(count, MAX_PROCESSES), worker_context(), initializer=_set_up_spawned
            )

    def _fork(self, count: int, function: Callable[..., Any] | None) -> None:
        with _lock:
            read_end, self._write_end = os.pipe()
            self._executor = ProcessPoolExecutor(
                count,
                worker_context(),
                initializer=_set_up_forked,
                initargs=(
                    function,
                    read_end,
                    self._write_end,
                ),  # inherited by the fork, not pickled
            )
            threads = torch.get_num_threads()
            # The workers inherit this number. They could not lower it themselves: torch would try
            # to end threads that a forked process does not have.
            torch.set_num_threads(1)
            try:
                with blocked_interrupts():
                    self._executor.submit(int).result()  # the first task forks all workers
            except BaseException:
                self.shutdown()
                raise
            finally:
                torch.set_num_threads(threads)
                os.close(read_end)

    def submit(self, function: Callable[..., Result], *task: Any) -> Future[Result]:
        return self._executor.submit(function, *task)

    def map(
        self, function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]]
    ) -> list[Result]:
        """Return `function(*task)` for every task, in order; cancel the others if one fails."""
        futures = [self._executor.submit(function, *task) for task in tasks]
        try:
            return [future.result() for future in futures]
        except BrokenProcessPool:
            raise  # the executor ends all futures itself, and crashes on a cancelled one
        except BaseException:
            for future in futures:
                future.cancel()
            raise

    def shutdown(self, cancel_futures: bool = False) -> None:
        """End the workers; `cancel_futures` cancels the tasks that have not begun."""
        self._executor.shutdown(cancel_futures=cancel_futures)
        if self._write_end >= 0:
            os.close(self._write_end)
        self._write_end = -1


_inherited_function: Callable[..., Any] | None = None
"""The function of the WorkerPool that this process is a worker of."""


def _set_up_forked(function: Callable[..., Any] | None, read_end: int, write_end: int) -> None:
    """Prepare a new worker: keep its function and watch for the end of its parent process."""
    global _inherited_function
    _inherited_function = function
    os.close(write_end)
    end_with_pipe(read_end)


def _set_up_spawned() -> None:
    """Prepare a new worker: ignore interrupts, and watch for the end of its parent process."""
    ignore_interrupts()
    end_with_parent()
    torch.set_num_threads(1)


def _call_inherited(*task: Any) -> Any:
    """Call the inherited function with the arguments `task`; runs in a worker."""
    assert _inherited_function is not None
    return _inherited_function(*task)
