"""Work on many things at once, taken back in the order in which they were given."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future, wait
from typing import TypeVar

__all__ = ["ordered_results"]

Task = TypeVar("Task")
Result = TypeVar("Result")


def ordered_results(
    submit: Callable[[Task], Future[Result]],
    tasks: Iterable[Task],
    size: Callable[[Task], int],
    bound: int,
) -> Iterator[tuple[Task, Result]]:
    """Every task with its result, in order, while the next ones are worked on.

    No more than `bound` of `size` are begun and not yet given back, one task at least. Where a task
    fails, or the caller ends early, those behind it are called off and those at work waited for.
    """
    begun: deque[tuple[Task, Future[Result]]] = deque()
    total = 0
    try:
        for task in tasks:
            while begun and total + size(task) > bound:
                total -= size(begun[0][0])
                yield _first(begun)
            begun.append((task, submit(task)))
            total += size(task)
        while begun:
            yield _first(begun)
    except BrokenExecutor:
        wait([future for _, future in begun])  # it fails all of them, and cannot the cancelled
        raise
    finally:
        wait([future for _, future in begun if not future.cancel()])


def _first(begun: deque[tuple[Task, Future[Result]]]) -> tuple[Task, Result]:
    """Stays among those begun while it is waited for: an interruption comes in the middle."""
    task, future = begun[0]
    result = future.result()
    begun.popleft()
    return task, result
