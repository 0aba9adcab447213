"""Worker processes give results in order, end with their parent, and may be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from cgconvert.io.parallel import WorkerPool, parallel_map, stop_workers

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


# parallel_map


def identify(number: int) -> tuple[int, int, int]:
    """The number, and the process and number of threads it was computed with."""
    time.sleep(0.02)
    return number, os.getpid(), torch.get_num_threads()


def fails(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return number


def dies(_: int, parent: int) -> int:
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    return 7


def identified(count: int) -> list[tuple[int, int, int]]:
    return parallel_map(identify, [(number,) for number in range(count)], 3)


def test_results_come_in_order_from_processes_that_stay() -> None:
    first, second = identified(9), identified(9)
    assert [number for number, _, _ in first] == list(range(9))
    assert {threads for _, _, threads in first} == {1}
    pids = {pid for _, pid, _ in first + second}
    assert len(pids) == 3
    assert os.getpid() not in pids


def test_a_single_task_or_process_needs_no_worker() -> None:
    for tasks, count in (([(1,), (2,)], 1), ([(1,)], 3)):
        assert {pid for _, pid, _ in parallel_map(identify, tasks, count)} == {os.getpid()}


def test_threads_share_the_workers() -> None:
    results: list[list[tuple[int, int, int]]] = []
    threads = [threading.Thread(target=lambda: results.append(identified(6))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [[number for number, _, _ in batch] for batch in results] == [list(range(6))] * 4
    assert len({pid for batch in results for _, pid, _ in batch}) == 3


def test_an_error_is_raised_and_the_workers_stay() -> None:
    before = {pid for _, pid, _ in identified(9)}
    with pytest.raises(ValueError, match="three"):
        parallel_map(fails, [(number,) for number in range(9)], 3)
    assert {pid for _, pid, _ in identified(9)} == before


def test_this_process_does_the_work_of_a_killed_worker() -> None:
    before = {pid for _, pid, _ in identified(9)}
    assert parallel_map(dies, [(number, os.getpid()) for number in range(4)], 3) == [7] * 4
    after = {pid for _, pid, _ in identified(9)}  # new ones
    assert len(after) == 3
    assert not before & after


def test_every_thread_gets_its_results_when_a_worker_is_killed() -> None:
    results: list[list[int]] = []

    def all_sevens() -> None:
        for _ in range(5):
            results.append(parallel_map(dies, [(number, os.getpid()) for number in range(50)], 3))

    threads = [threading.Thread(target=all_sevens) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[7] * 50] * 20


def test_stopped_workers_end_and_new_ones_are_forked() -> None:
    """Also where tasks were cancelled."""
    before = {pid for _, pid, _ in identified(9)}
    with pytest.raises(ValueError, match="three"):
        parallel_map(fails, [(number,) for number in range(500)], 3)
    stop_workers()
    assert not any(_lives(pid) for pid in before)
    stop_workers()  # there are none
    assert len({pid for _, pid, _ in identified(9)} - before) == 3


HOST = """
import os, time
from tests.io.test_parallel import identified
print(*{pid for _, pid, _ in identified(9)}, flush=True)
time.sleep(60)
"""


def test_kept_workers_end_with_a_killed_parent() -> None:
    assert_workers_end_with_parent(HOST, 3)


def assert_workers_end_with_parent(code: str, count: int) -> None:
    """Run `code`, which prints the process ids of its workers, and kill it."""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        pids = [int(pid) for pid in host.stdout.readline().split()]
        assert len(pids) == count
        host.kill()
    until = time.monotonic() + 30
    while any(_lives(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(_lives(pid) for pid in pids)


# WorkerPool

POOL = """
import multiprocessing, time
from cgconvert.io.parallel import WorkerPool
with WorkerPool(time.sleep, 3) as pool:
    busy = [pool.submit(60) for _ in range(3)]
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(60)
"""


def test_pool_workers_outlast_an_interrupt_but_not_their_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", POOL], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [int(pid) for pid in parent.stdout.readline().split()]
    for child in children:  # as a terminal or a service manager does, to all
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(child, number)
    time.sleep(0.3)
    assert [_lives(child) for child in children] == [True] * 3
    parent.kill()
    parent.wait(30)
    deadline = time.monotonic() + 30
    while any(map(_lives, children)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(_lives, children))


@pytest.mark.parametrize("forked", [True, False])
def test_a_pool_runs_a_job_that_cannot_be_pickled(forked: bool) -> None:
    with WorkerPool(lambda number: (number, os.getpid()), 2, forked=forked) as pool:
        futures = [pool.submit(number) for number in range(6)]
        results = [future.result() for future in futures]
    assert [number for number, _ in results] == list(range(6))
    assert (os.getpid() in {pid for _, pid in results}) != forked


def test_workers_of_two_pools_end_with_their_parent() -> None:
    """Neither pool's processes keep the other's alive."""
    code = """
import os, threading, time
from cgconvert.io.parallel import WorkerPool, parallel_map
from tests.io.test_parallel import identified
pids = set()
def kept():
    pids.update(pid for _, pid, _ in identified(9))
thread = threading.Thread(target=kept)
thread.start()
with WorkerPool(lambda: (time.sleep(0.05), os.getpid())[1], 3) as pool:
    pids.update(future.result() for future in [pool.submit() for _ in range(12)])
    thread.join()
    print(*pids, flush=True)
    time.sleep(60)
"""
    assert_workers_end_with_parent(code, 6)


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
