"""A plan is written exactly, and the target appears complete or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cgconvert.codecs.encoding import BF16, F16, F32, Encoding
from cgconvert.errors import InputError, OutputError, UsageError
from cgconvert.formats.read import read
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.dtype import FLOAT32
from cgconvert.model.tensor import InMemoryTensor, LazyTensor
from cgconvert.write import execute as execution
from cgconvert.write import plan as plans
from cgconvert.write.execute import execute
from cgconvert.write.manifest import find_manifest, manifest_path
from cgconvert.write.plan import FilePlan, Plan, lay_out

MATRIX = torch.arange(1000 * 8, dtype=torch.float32).reshape(1000, 8)


@pytest.fixture
def checkpoint(make_checkpoint: Callable[..., Path]) -> Checkpoint:
    return read(str(make_checkpoint()))


def folder_plan(
    checkpoint: Checkpoint, output: Path, tensor: torch.Tensor = MATRIX, encoding: Encoding = F32
) -> Plan:
    sources = [("a", InMemoryTensor(tensor), encoding), ("b", InMemoryTensor(tensor[0]), F16)]
    tensors = lay_out(sources, start=3, align=64)
    files = (FilePlan("deep/data.bin", b"abc", tensors), FilePlan("note.txt", b"hello"))
    return Plan(checkpoint, output, True, "huggingface", "F32", files, {"dtype": "float32"})


def test_bytes_are_written_at_the_planned_offsets(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "CHUNK_BYTES", 4000)  # many chunks
    plan = folder_plan(checkpoint, tmp_path / "new" / "out")
    execute(plan)
    data = (tmp_path / "new/out/deep/data.bin").read_bytes()
    first, second = (tensor_plan.arrays[0] for tensor_plan in plan.files[0].tensors)
    assert (first.offset, second.offset) == (64, 64 + 32000)
    assert data[:64] == b"abc" + bytes(61)
    assert np.array_equal(np.frombuffer(data, "<f4", 8000, 64), MATRIX.flatten().numpy())
    assert np.array_equal(np.frombuffer(data, "<f2", 8, second.offset), np.arange(8))
    assert len(data) == plan.files[0].size
    assert (tmp_path / "new/out/note.txt").read_text() == "hello"
    assert os.listdir(tmp_path / "new") == ["out"]


def test_the_manifest_has_the_hashes_of_source_and_output(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    execute(folder_plan(checkpoint, tmp_path / "out"))
    manifest = find_manifest(tmp_path / "out")
    assert manifest is not None
    for name, entry in manifest.files.items():
        data = (tmp_path / "out" / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert manifest.name == "codegen-small-mono"
    assert manifest.source["layout"] == "safetensors"
    names = [entry["name"] for entry in manifest.source["files"]]
    assert names[:2] == ["model.safetensors", "config.json"]
    weights = checkpoint.files[0].read_bytes()
    assert manifest.source["files"][0]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert set(manifest.libraries) >= {"torch", "gguf", "onnx"}


def test_two_runs_give_the_same_manifest(tmp_path: Path, checkpoint: Checkpoint) -> None:
    for name in ("one", "two"):
        execute(folder_plan(checkpoint, tmp_path / name / "out"))
    first, second = (
        (tmp_path / name / "out" / "cgconvert.json").read_bytes() for name in ("one", "two")
    )
    assert first == second


def test_an_existing_output_is_kept_unless_forced(tmp_path: Path, checkpoint: Checkpoint) -> None:
    output = tmp_path / "out"
    execute(folder_plan(checkpoint, output, MATRIX + 1))
    earlier = (output / "deep/data.bin").read_bytes()
    with pytest.raises(UsageError, match="exists; give `force=True`"):
        execute(folder_plan(checkpoint, output))
    assert (output / "deep/data.bin").read_bytes() == earlier
    with pytest.raises(InputError):
        execute(folder_plan(checkpoint, output, MATRIX / 0), force=True)
    assert (output / "deep/data.bin").read_bytes() == earlier
    execute(folder_plan(checkpoint, output), force=True)
    assert (output / "deep/data.bin").read_bytes() != earlier
    assert (output / "note.txt").exists()
    assert sorted(os.listdir(tmp_path)) == ["out", "source-safetensors"]


def test_folders_are_swapped_without_renameat2(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    execute(folder_plan(checkpoint, output))
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
    execute(folder_plan(checkpoint, output, MATRIX + 1), force=True)
    data = (output / "deep/data.bin").read_bytes()
    assert np.frombuffer(data, "<f4", 1, 64)[0] == 1
    assert sorted(os.listdir(tmp_path)) == ["out", "source-safetensors"]


def test_a_single_file_has_its_manifest_beside_it(tmp_path: Path, checkpoint: Checkpoint) -> None:
    output = tmp_path / "gguf" / "model.gguf"
    tensors = lay_out([("a", InMemoryTensor(MATRIX), BF16)])
    plan = Plan(checkpoint, output, False, "gguf", "BF16", (FilePlan("model.gguf", b"", tensors),))
    execute(plan)
    assert sorted(os.listdir(output.parent)) == ["model.gguf", "model.gguf.cgconvert.json"]
    assert json.loads(manifest_path(output).read_text())["type"] == "BF16"
    assert output.stat().st_size == 16000


@pytest.mark.parametrize(
    ("tensor", "encoding", "message"),
    [
        (MATRIX.log(), F32, "tensor a: 1 values are NaN or infinite in the source"),
        (MATRIX * 100, F16, r"tensor a: \d+ values overflow F16; choose a wider type"),
    ],
)
def test_numbers_that_cannot_be_stored_are_refused(
    tmp_path: Path, checkpoint: Checkpoint, tensor: torch.Tensor, encoding: Encoding, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        execute(folder_plan(checkpoint, tmp_path / "out", tensor, encoding))
    assert os.listdir(tmp_path) == ["source-safetensors"]


class Full(LazyTensor):
    """A source whose reading fails with the error of a full disk."""

    shape = (4, 4)
    dtype = FLOAT32
    parents = ()

    def read(self, rows: slice = slice(None), cols: slice = slice(None)) -> torch.Tensor:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failed_run_leaves_nothing_behind(tmp_path: Path, checkpoint: Checkpoint) -> None:
    tensors = lay_out([("a", Full(), F32)])
    plan = Plan(checkpoint, tmp_path / "out", True, "onnx", "F32", (FilePlan("x", b"", tensors),))
    with pytest.raises(OutputError, match="No space left on device"):
        execute(plan)
    assert os.listdir(tmp_path) == ["source-safetensors"]


def test_too_little_space_is_refused_before_writing(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "free_bytes", lambda output: 1000)
    with pytest.raises(OutputError, match=r"are needed, 1 kB are free"):
        execute(folder_plan(checkpoint, tmp_path / "out"))
    assert os.listdir(tmp_path) == ["source-safetensors"]


def test_a_second_run_on_one_output_is_refused(tmp_path: Path, checkpoint: Checkpoint) -> None:
    staging = tmp_path / ".out.cgconvert-tmp"
    staging.mkdir()
    with (staging / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="is being written by another run"):
            execute(folder_plan(checkpoint, tmp_path / "out"))
        assert staging.exists()
    (staging / "content").mkdir()
    (staging / "content" / "left over").write_text("by a run that was killed")
    execute(folder_plan(checkpoint, tmp_path / "out"))
    assert sorted(os.listdir(tmp_path)) == ["out", "source-safetensors"]
    assert not (tmp_path / "out" / "left over").exists()


def test_an_output_inside_the_input_or_around_it_is_refused(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    for output in (checkpoint.path, checkpoint.path / "sub", tmp_path / "source-safetensors"):
        with pytest.raises(UsageError, match=r"choose another `output`"):
            execute(folder_plan(checkpoint, output), force=True)
    assert (checkpoint.path / "model.safetensors").exists()
