"""Results come in the order of their tasks, with a bound on the tasks in flight."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from cgconvert.io.parallel import ordered_results


def square_slowly(number: int) -> int:
    """The square of a number, after a random time."""
    time.sleep(random.random() / 500)
    return number * number


def test_results_come_in_order_and_no_more_than_the_limit_is_in_flight() -> None:
    in_flight: set[int] = set()
    most = 0

    def submit(task: int) -> Future[int]:
        nonlocal most
        in_flight.add(task)
        most = max(most, len(in_flight))
        return pool.submit(square_slowly, task)

    with ThreadPoolExecutor(4) as pool:
        for task, result in ordered_results(submit, range(60), lambda task: 10, 50):
            assert result == task * task
            assert task == min(in_flight)
            in_flight.remove(task)
    assert in_flight == set()
    assert most == 5


def test_a_task_larger_than_the_limit_runs_alone() -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(
            ordered_results(lambda t: pool.submit(lambda: t), [9, 99, 9], lambda t: t, 10)
        )
    assert results == [(9, 9), (99, 99), (9, 9)]


def test_running_tasks_have_ended_when_a_failure_is_raised() -> None:
    completed, gate = [], threading.Event()

    def work(task: int) -> None:
        if task == 0:
            gate.wait(5)
            raise KeyError(task)
        gate.set()
        time.sleep(0.05)
        completed.append(task)

    with ThreadPoolExecutor(2) as pool:
        chunks = ordered_results(lambda t: pool.submit(work, t), range(20), lambda t: 1, 20)
        with pytest.raises(KeyError):
            next(chunks)
        count = len(completed)
        time.sleep(0.2)
        assert count == len(completed) < 19
