"""Chunks are worked on by processes, in order and in bounds, and hashed behind the writer."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from cgconvert.codecs.matmul_nbits import MatMulNBits
from cgconvert.codecs.plain import F16, F32
from cgconvert.errors import InputError, OutputError
from cgconvert.formats.read import read
from cgconvert.io.pipeline import ordered_results
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.model.tensor import InMemory, LazyTensor
from cgconvert.write import crew as crews
from cgconvert.write import plan as plans
from cgconvert.write.execute import execute
from cgconvert.write.follow import STEP, StreamingHash
from cgconvert.write.plan import FilePlan, Plan, lay_out

MATRIX = torch.randn(3000, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three, however little there is to do, and many chunks."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(crews, "SMALL_BYTES", 0)
    monkeypatch.setattr(plans, "CHUNK_BYTES", 1 << 14)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def checkpoint(make_checkpoint: Callable[..., Path]) -> Checkpoint:
    return read(str(make_checkpoint()))


def plan_of(checkpoint: Checkpoint, output: Path, tensor: LazyTensor) -> Plan:
    """Pieces of an item lie one behind the other, so its chunks are written out of order."""
    items = lay_out([("a", tensor, MatMulNBits(4)), ("b", tensor, F16)], start=7, align=64)
    files = (FilePlan("one.bin", b"head", items, items[-1].pieces[-1].offset + 400_000),
             FilePlan("two.bin", b"", lay_out([("c", tensor.T, F32)])))  # fmt: skip
    return Plan(checkpoint, output, True, "onnx", "Q4", files)


# in_order


def test_results_come_in_order_and_no_more_than_the_bound_is_begun() -> None:
    begun: set[int] = set()
    most = 0

    def submit(task: int) -> Future[int]:
        nonlocal most
        begun.add(task)
        most = max(most, len(begun))
        return pool.submit(lambda: time.sleep(random.random() / 500) or task * task)

    with ThreadPoolExecutor(4) as pool:
        for task, result in ordered_results(submit, range(60), lambda task: 10, 50):
            assert result == task * task
            assert task == min(begun)
            begun.remove(task)
    assert begun == set()
    assert most == 5


def test_one_task_larger_than_the_bound_is_done_alone() -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(ordered_results(lambda t: pool.submit(lambda: t), [9, 99, 9], lambda t: t, 10))
    assert found == [(9, 9), (99, 99), (9, 9)]


def test_what_is_begun_has_ended_when_a_failure_shows() -> None:
    done, gate = [], threading.Event()

    def work(task: int) -> None:
        if task == 0:
            gate.wait(5)
            raise KeyError(task)
        gate.set()
        time.sleep(0.05)
        done.append(task)

    with ThreadPoolExecutor(2) as pool:
        chunks = ordered_results(lambda t: pool.submit(work, t), range(20), lambda t: 1, 20)
        with pytest.raises(KeyError):
            next(chunks)
        count = len(done)
        time.sleep(0.2)
        assert count == len(done) < 19


# Follower


def test_a_file_is_hashed_behind_its_writer(tmp_path: Path) -> None:
    data = random.Random(0).randbytes(3 * STEP + 12345)
    path = tmp_path / "file"
    with path.open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, len(data))
        follower = StreamingHash(path)
        for start in range(0, len(data), 1 << 20):
            os.pwrite(file.fileno(), data[start : start + (1 << 20)], start)
            follower.reached(min(len(data), start + (1 << 20)))
    assert follower.hexdigest(len(data)) == hashlib.sha256(data).hexdigest()
    follower.close()


def test_a_file_that_becomes_shorter_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"short")
    follower = StreamingHash(tmp_path / "file")
    with pytest.raises(OSError, match="ended while it was written"):
        follower.hexdigest(6)
    follower.close()


# Crew


@pytest.mark.usefixtures("processes")
def test_processes_write_what_one_thread_writes(tmp_path: Path, checkpoint: Checkpoint) -> None:
    manifests = []
    for name in ("processes", "thread"):
        plan = plan_of(checkpoint, tmp_path / name / "out", InMemory(MATRIX))
        manifest = execute(plan)
        manifests.append(manifest)
        for file, entry in manifest.files.items():
            data = (plan.output / file).read_bytes()
            assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        torch.set_num_threads(1)
    assert manifests[0] == manifests[1]


@pytest.mark.usefixtures("processes")
def test_every_fault_is_counted(tmp_path: Path, checkpoint: Checkpoint) -> None:
    broken = MATRIX.clone()
    broken[[5, 1000, 2999], 3] = float("nan")
    with pytest.raises(InputError, match="tensor a: 3 values are NaN or infinite in the source"):
        execute(plan_of(checkpoint, tmp_path / "out", InMemory(broken)))
    assert os.listdir(tmp_path) == ["source-safetensors"]


class Killed(InMemory):
    """Its reader is killed, as the kernel does where there is no memory left."""

    def read(self, rows: slice = slice(None), cols: slice = slice(None)) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().read(rows, cols)


@pytest.mark.usefixtures("processes")
def test_a_killed_process_is_told_of(
    tmp_path: Path, checkpoint: Checkpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(5):
        with pytest.raises(OutputError, match="a process was killed from outside"):
            execute(plan_of(checkpoint, tmp_path / "out", Killed(MATRIX)))
    assert os.listdir(tmp_path) == ["source-safetensors"]
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
def test_processes_outlast_an_interruption_and_not_their_parent() -> None:
    code = """
import pathlib, time, torch
from cgconvert.write import crew
from cgconvert.write.plan import Plan
torch.set_num_threads(3)
crew.SMALL_BYTES = 0
with crew.WorkerPool(time.sleep, Plan(None, pathlib.Path("x"), True, "", "", ())) as workers:
    busy = [workers.submit(60) for _ in range(3)]
    print(*workers._pool._processes, flush=True)
    time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [int(pid) for pid in parent.stdout.readline().split()]
    for child in children:  # as a terminal or a service manager does, to all
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(child, number)
    time.sleep(0.3)
    assert [_runs(child) for child in children] == [True] * 3
    parent.kill()
    parent.wait(10)
    deadline = time.monotonic() + 10
    while any(map(_runs, children)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(_runs, children))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_the_memory_told_is_bounded(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a matrix of 100 GB on any number of cores: what leaves room below 1.5 GB for torch."""
    huge = torch.empty(1, 1).expand(4_000_000, 6144)
    for count in (1, 4, 16, 256):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        for tensor in (InMemory(huge), InMemory(huge.T).T):
            items = lay_out([("a", tensor, F16)])
            files = (FilePlan("x", b"", items),)
            plan = Plan(checkpoint, tmp_path / "x", True, "x", "F16", files)
            assert plan.peak_memory < 1.1e9
