"""Calibration on a GPU, tested with a simulated device on a machine without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from cgconvert.calibrate import estimate, sensitivity
from cgconvert.calibrate import gguf as calibrate
from cgconvert.calibrate.calibrated_plan import CalibratedPlan
from cgconvert.calibrate.imatrix import collect
from cgconvert.calibrate.presets import PRESETS, CalibrationPreset
from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.ggml import ENCODINGS
from cgconvert.codecs.matmul_nbits import MatMulNBits
from cgconvert.errors import UsageError
from cgconvert.formats.gguf.imatrix import encoded
from cgconvert.io.progress import SilentProgress
from cgconvert.model import device as devices
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.forward import rotary
from cgconvert.verification.reference import Reference
from cgconvert.write.execute import execute
from cgconvert.write.manifest import MANIFEST_NAME, find_manifest
from tests.support import fake_gpu
from tests.support.cuda_packages import cuda_is_there, no_gpu
from tests.support.plans import quantize
from tests.support.tampering import GEOMETRY, checkpoint

CODECS = {n: c for n, c in ENCODINGS.items() if isinstance(c, BlockCodec)} | {
    layout.name: layout.with_search()
    for bits, symmetric in ((4, False), (4, True), (8, True))
    for layout in [MatMulNBits(bits, 32, symmetric)]
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return checkpoint(tmp_path_factory.mktemp("source"), replace(GEOMETRY, n_layer=1))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    preset = CalibrationPreset("default", train=16, validation=4, sweeps=1, length=64)
    monkeypatch.setitem(PRESETS, "default", preset)
    grad = torch.autograd.grad

    def on_this_thread(*arguments: Any) -> Any:
        """Without autograd's own threads: they begin with a process' first backward pass, which
        may be another test's, and then lack the simulated device."""
        with torch.autograd.set_multithreading_enabled(mode=False):
            return grad(*arguments)

    monkeypatch.setattr(torch.autograd, "grad", on_this_thread)


def planned(
    source: Checkpoint, output: Path, device: str = "auto", **options: Any
) -> CalibratedPlan:
    text = output.with_suffix(".txt")
    text.write_text("".join(f"def f{n}(x):\n    return x + {n * n}\n" for n in range(100)))
    plan = quantize(source, output, device=device, calibration=str(text), **options)
    assert isinstance(plan, CalibratedPlan)
    return plan


def files(artefact: Path) -> Mapping[str, bytes]:
    """The bytes of each file by name, without the manifest, which names the device."""
    paths = [artefact] if artefact.is_file() else [p for p in artefact.rglob("*") if p.is_file()]
    return {path.name: path.read_bytes() for path in paths if path.name != MANIFEST_NAME}


@pytest.mark.parametrize("form", ["gguf", "onnx"])
def test_everything_is_computed_on_the_device(
    form: str, source: Checkpoint, tmp_path: Path, quick: None
) -> None:
    """The simulated device refuses tensors of the CPU, and gives the same bytes."""
    torch.ones(1, requires_grad=True).sum().backward()
    artefacts = []
    for device in (torch.device("cpu"), fake_gpu.device()):
        path = tmp_path / device.type / ("model.gguf" if form == "gguf" else "model")
        path.parent.mkdir()
        plan = replace(planned(source, path, bits=4, format=form), device=device)
        with sdpa_kernel(SDPBackend.MATH):  # the CPU's own adds in another order
            execute(plan)
        manifest = find_manifest(path)
        assert manifest is not None
        assert manifest.options["calibration"]["device"] == device.type
        artefacts.append(files(path))
    assert artefacts[0] == artefacts[1]


@pytest.mark.parametrize("form", ["gguf", "onnx"])
def test_a_device_without_float64_gives_the_same_bytes(
    form: str, source: Checkpoint, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MPS has none, so the CPU keeps the sums."""
    monkeypatch.setattr(devices, "WITHOUT_FLOAT64", {"fakegpu"})
    artefacts = []
    for device in (torch.device("cpu"), fake_gpu.device()):
        path = tmp_path / device.type / ("model.gguf" if form == "gguf" else "model")
        path.parent.mkdir()
        plan = replace(planned(source, path, bits=4, format=form), device=device)
        with sdpa_kernel(SDPBackend.MATH), fake_gpu.without_float64():
            execute(plan)
        artefacts.append(files(path))
    assert artefacts[0] == artefacts[1]
    with (
        fake_gpu.without_float64(),
        pytest.raises(TypeError, match=r"fakegpu has no torch\.float64"),
    ):
        torch.ones(2).to(fake_gpu.device()).double()


def test_a_tensor_left_on_the_cpu_is_noticed(
    source: Checkpoint, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "rotary", lambda g, n, device: rotary(g, n))
    plan = replace(planned(source, tmp_path / "x.gguf", bits=4), device=fake_gpu.device())
    with pytest.raises(RuntimeError, match="tensors on fakegpu and on cpu"):
        plan.resolve(tmp_path / "steps", SilentProgress())


@pytest.mark.parametrize("name", CODECS)
def test_block_types_give_the_same_bytes(name: str) -> None:
    codec, generator = CODECS[name], torch.Generator().manual_seed(0)
    rows = torch.randn(5, 512, generator=generator)
    importance = torch.rand(512, generator=generator)
    device = fake_gpu.device()
    for weights in (None, importance):
        on_cpu = codec.encode_rows(rows, weights)
        moved = None if weights is None else weights.to(device)
        on_device = codec.encode_rows(rows.to(device), moved)
        assert on_device.device == device
        assert torch.equal(on_device.cpu(), on_cpu)
        values = codec.decode_rows(on_device, rows.shape)
        assert values.device == device
        assert torch.equal(values.cpu(), codec.decode_rows(on_cpu, rows.shape))


def test_imatrix_is_the_same_on_the_device(
    source: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.arange(64).view(2, 32)
    collected = [
        encoded(collect(source.decoder, ids, "a text", SilentProgress(), device))
        for device in (torch.device("cpu"), fake_gpu.device())
    ]
    monkeypatch.setattr(devices, "WITHOUT_FLOAT64", {"fakegpu"})
    with fake_gpu.without_float64():
        without = collect(source.decoder, ids, "a text", SilentProgress(), fake_gpu.device())
    assert collected[0] == collected[1] == encoded(without)


def test_reference_is_the_same_on_the_device(source: Checkpoint) -> None:
    ids = [list(range(40)), list(range(7))]
    expected = np.concatenate(Reference(source.decoder, device="cpu").logits(ids))
    reference = Reference(source.decoder, device="cpu")
    reference.device = fake_gpu.device()
    np.testing.assert_array_equal(np.concatenate(reference.logits(ids)), expected)


def test_auto_takes_cuda_where_it_is(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.gguf"
    cuda_is_there(monkeypatch)
    for device, type_ in (("auto", "cuda"), ("cuda", "cuda"), ("cpu", "cpu")):
        assert planned(source, path, device, bits=4).device.type == type_
    with pytest.raises(UsageError, match="only calibration runs there"):
        quantize(source, path, type="Q4_K_M", effort="fast", device="cuda")
    quantize(source, path, type="Q4_K_M", effort="fast")
    no_gpu(monkeypatch)
    assert planned(source, path, bits=4).device.type == "cpu"
    with pytest.raises(UsageError, match='torch finds no CUDA device; use `device="cpu"`'):
        quantize(source, path, bits=4, device="cuda")


def test_time_is_estimated_for_the_device(source: Checkpoint, tmp_path: Path, quick: None) -> None:
    plan = replace(planned(source, tmp_path / "x.gguf", bits=4), device=fake_gpu.device())
    assert " windows of 64 tokens to fit to, " in plan.describe()


@pytest.mark.parametrize("step", ["describe", "resolve"])
def test_gpu_kernels_are_deterministic_and_too_little_memory_is_reported(
    step: str, source: Checkpoint, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both hold already for the estimate of time: cuBLAS reads its settings when it starts."""
    plan = replace(planned(source, tmp_path / "x.gguf", bits=4), device=fake_gpu.device())
    seen = []

    def full(*_: object) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())
        raise torch.OutOfMemoryError

    monkeypatch.setattr(calibrate, "calibrate_gguf", full)
    monkeypatch.setattr(estimate.Measurements, "_timed", full)
    with pytest.raises(UsageError, match='not enough memory on the GPU; use `device="cpu"`'):
        plan.describe() if step == "describe" else plan.resolve(
            tmp_path / "steps", SilentProgress()
        )
    assert seen == [True]
    assert not torch.are_deterministic_algorithms_enabled()
