"""Workers write what one thread writes, count every fault, and may be killed."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cgconvert.codecs.encoding import F16, F32
from cgconvert.codecs.matmul_nbits import MatMulNBits
from cgconvert.errors import InputError, OutputError
from cgconvert.formats.read import read
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.tensor import InMemoryTensor, LazyTensor
from cgconvert.write import execute as execution
from cgconvert.write import plan as plans
from cgconvert.write.execute import execute
from cgconvert.write.plan import FilePlan, Plan, lay_out

MATRIX = torch.randn(3000, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three worker processes, however little is written, and many chunks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(execution, "SMALL_BYTES", 0)
    monkeypatch.setattr(plans, "CHUNK_BYTES", 1 << 14)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def checkpoint(make_checkpoint: Callable[..., Path]) -> Checkpoint:
    return read(str(make_checkpoint()))


def plan_of(checkpoint: Checkpoint, output: Path, tensor: LazyTensor) -> Plan:
    """The arrays of a tensor lie one behind the other, so its chunks are written out of order."""
    tensors = lay_out([("a", tensor, MatMulNBits(4)), ("b", tensor, F16)], start=7, align=64)
    files = (FilePlan("first.bin", b"head", tensors, tensors[-1].arrays[-1].offset + 400_000),
             FilePlan("second.bin", b"", lay_out([("c", tensor.T, F32)])))  # fmt: skip
    return Plan(checkpoint, output, True, "onnx", "Q4", files)


@pytest.mark.usefixtures("processes")
def test_processes_write_what_one_thread_writes(tmp_path: Path, checkpoint: Checkpoint) -> None:
    manifests = []
    for name in ("processes", "thread"):
        plan = plan_of(checkpoint, tmp_path / name / "out", InMemoryTensor(MATRIX))
        manifest = execute(plan)
        manifests.append(manifest)
        for file, entry in manifest.files.items():
            data = (plan.output / file).read_bytes()
            assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        torch.set_num_threads(1)
    assert manifests[0] == manifests[1]


@pytest.mark.usefixtures("processes")
def test_values_of_all_chunks_are_counted_in_the_error(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    broken = MATRIX.clone()
    broken[[5, 1000, 2999], 3] = float("nan")
    with pytest.raises(InputError, match="tensor a: 3 values are NaN or infinite in the source"):
        execute(plan_of(checkpoint, tmp_path / "out", InMemoryTensor(broken)))
    assert os.listdir(tmp_path) == ["source-safetensors"]


class Killed(InMemoryTensor):
    """Kills the process that reads it, as the kernel does when memory runs out."""

    def read(self, rows: slice = slice(None), cols: slice = slice(None)) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().read(rows, cols)


@pytest.mark.usefixtures("processes")
def test_a_killed_worker_is_one_clear_error(
    tmp_path: Path, checkpoint: Checkpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(5):
        with pytest.raises(OutputError, match="a process was killed from outside"):
            execute(plan_of(checkpoint, tmp_path / "out", Killed(MATRIX)))
    assert os.listdir(tmp_path) == ["source-safetensors"]
    assert capfd.readouterr().err == ""


def test_peak_memory_is_bounded(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matrix of 100 GB, on any number of cores, leaves room below 1.5 GB for torch."""
    huge = torch.empty(1, 1).expand(4_000_000, 6144)
    for count in (1, 4, 16, 256):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        for tensor in (InMemoryTensor(huge), InMemoryTensor(huge.T).T):
            tensors = lay_out([("a", tensor, F16)])
            files = (FilePlan("x", b"", tensors),)
            plan = Plan(checkpoint, tmp_path / "x", True, "x", "F16", files)
            assert plan.peak_memory < 1.1e9
