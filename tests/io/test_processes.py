"""Processes that searches are shared out among: they stay, end with their parent, may die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from cgconvert.io.processes import end, parallel_map

if sys.platform != "linux":
    pytest.skip("elsewhere nothing is forked", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


def where(number: int) -> tuple[int, int, int]:
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


def told(count: int) -> list[tuple[int, int, int]]:
    return parallel_map(where, [(number,) for number in range(count)], 3)


def test_results_come_in_order_from_processes_that_stay() -> None:
    first, second = told(9), told(9)
    assert [number for number, _, _ in first] == list(range(9))
    assert {threads for _, _, threads in first} == {1}
    pids = {pid for _, pid, _ in first + second}
    assert len(pids) == 3
    assert os.getpid() not in pids


def test_one_process_alone_is_this_one() -> None:
    for tasks, count in (([(1,), (2,)], 1), ([(1,)], 3)):
        assert {pid for _, pid, _ in parallel_map(where, tasks, count)} == {os.getpid()}


def test_threads_share_them() -> None:
    found: list[list[tuple[int, int, int]]] = []
    threads = [threading.Thread(target=lambda: found.append(told(6))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [[number for number, _, _ in one] for one in found] == [list(range(6))] * 4
    assert len({pid for one in found for _, pid, _ in one}) == 3


def test_an_error_is_told_and_the_processes_go_on() -> None:
    before = {pid for _, pid, _ in told(9)}
    with pytest.raises(ValueError, match="three"):
        parallel_map(fails, [(number,) for number in range(9)], 3)
    assert {pid for _, pid, _ in told(9)} == before


def test_where_one_dies_this_process_does_the_work() -> None:
    before = {pid for _, pid, _ in told(9)}
    assert parallel_map(dies, [(number, os.getpid()) for number in range(4)], 3) == [7] * 4
    after = {pid for _, pid, _ in told(9)}  # others were forked
    assert len(after) == 3
    assert not before & after


def test_where_one_dies_every_thread_gets_its_results() -> None:
    found: list[list[int]] = []

    def all_sevens() -> None:
        for _ in range(5):
            found.append(parallel_map(dies, [(number, os.getpid()) for number in range(50)], 3))

    threads = [threading.Thread(target=all_sevens) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[7] * 50] * 20


def test_they_end_when_told_and_others_are_forked() -> None:
    """Also where work was given up that they had not come to."""
    before = {pid for _, pid, _ in told(9)}
    with pytest.raises(ValueError, match="three"):
        parallel_map(fails, [(number,) for number in range(500)], 3)
    end()
    assert not any(_lives(pid) for pid in before)
    end()  # none are there
    assert len({pid for _, pid, _ in told(9)} - before) == 3


HOST = """
import os, time
from tests.io.test_processes import told
print(*{pid for _, pid, _ in told(9)}, flush=True)
time.sleep(60)
"""


def test_they_end_with_their_parent_however_it_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", HOST], stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        pids = [int(pid) for pid in host.stdout.readline().split()]
        assert len(pids) == 3
        host.kill()
    until = time.monotonic() + 10
    while any(_lives(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(_lives(pid) for pid in pids)


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
