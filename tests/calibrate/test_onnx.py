"""Calibration for ONNX Runtime: the graph, its verification, and types under a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cgconvert.calibrate import allocation
from cgconvert.calibrate.allocation import Choice, allocate
from cgconvert.calibrate.calibrated_plan import CalibrationResult
from cgconvert.calibrate.calibration_set import CalibrationSet
from cgconvert.calibrate.onnx import calibrate_onnx, variant_types
from cgconvert.calibrate.presets import PRESETS
from cgconvert.codecs.matmul_nbits import MatMulNBits
from cgconvert.codecs.quantized_tensor import QuantizedTensor
from cgconvert.errors import UsageError
from cgconvert.formats.onnx import writer as onnx
from cgconvert.formats.onnx.reader import decoded_tensors, find_graph
from cgconvert.formats.onnx.variant import Variant
from cgconvert.formats.onnx.weights import QKV
from cgconvert.formats.registry import load
from cgconvert.io.progress import SilentProgress
from cgconvert.model.decoder import Checkpoint, Decoder
from cgconvert.model.matrix_id import MatrixId
from cgconvert.model.tensor import InMemoryTensor, SelectedRows
from cgconvert.model.tensor_names import ONNX
from cgconvert.texts.text import read_text
from cgconvert.verification.metrics import Distribution, measure
from cgconvert.verification.quantization_error import searched_error_over_bound
from cgconvert.verification.reference import Reference
from cgconvert.verification.thresholds import Verdict
from cgconvert.verification.verify import verify
from cgconvert.write.execute import execute
from tests.conftest import first_layers

VARIANT = Variant(bits=4)
PRESET = PRESETS["default"]


@pytest.fixture(scope="module")
def source() -> Checkpoint:
    return first_layers(2)


@pytest.fixture(scope="module")
def windows(source: Checkpoint) -> CalibrationSet:
    text = read_text("stdlib", "calibration")
    excerpt = replace(text, documents=tuple(d[:6000] for d in text.documents[:12]))
    return CalibrationSet.sample(excerpt.ids(source.tokenizer), source.geometry, text.name, PRESET)


@pytest.fixture(scope="module")
def result(
    source: Checkpoint, windows: CalibrationSet, tmp_path_factory: pytest.TempPathFactory
) -> CalibrationResult:
    return calibrate_onnx(
        source, VARIANT, windows, PRESET, tmp_path_factory.mktemp("work"), SilentProgress()
    )


def written(source: Checkpoint, checkpoint: Checkpoint, path: Path, **options: object) -> Path:
    execute(onnx.plan(checkpoint, path, bits=4, **options), force=True)  # type: ignore[arg-type]
    return path


def divergence(source: Checkpoint, decoder: Decoder) -> float:
    ids = read_text("stdlib").ids(source.tokenizer, 1024)
    sequences, size = [ids[i : i + 256] for i in range(0, 1024, 256)], source.tokenizer.size
    reference = Distribution.joined(Reference(source.decoder).distributions(sequences, size))
    logits = Reference(decoder, weight_dtype=None).logits(sequences)
    return measure(reference, np.concatenate(logits)).kl_mean


def test_calibration_loses_far_less_than_rounding_at_the_same_bytes(
    source: Checkpoint, result: CalibrationResult, tmp_path: Path
) -> None:
    plain = onnx.plan(source, tmp_path / "plain", bits=4)
    calibrated = onnx.plan(result.checkpoint, tmp_path / "x", bits=4, adjusted=result.adjusted)
    pieces = [
        [p for tensor_plan in plan.tensors for p in tensor_plan.arrays]
        for plan in (calibrated, plain)
    ]
    assert pieces[0] == pieces[1]
    execute(plain)
    rounded = divergence(source, load("onnx").decoder(plain.output))
    assert divergence(source, result.checkpoint.decoder) < 0.4 * rounded


def test_the_graph_holds_the_fitted_numbers(
    source: Checkpoint, result: CalibrationResult, tmp_path: Path
) -> None:
    """Rows of q and k lie in halves there; codes, scales and zero points go with them."""
    path = written(source, result.checkpoint, tmp_path / "x", adjusted=result.adjusted)
    stored = decoded_tensors(find_graph(path))
    decoder = result.checkpoint.decoder.half_split()
    for i, layer in enumerate(decoder.layers):
        packed = torch.cat([part.read() for part in (layer.q, layer.k, layer.v)])
        assert torch.equal(stored[QKV.format(i=i)].read(), packed)
        for part in ("o", "fc_in", "fc_out"):
            name = ONNX.layer[part].format(i=i)
            assert torch.equal(stored[name].read(), getattr(layer, part).read())
    for part in ("wte", "head"):
        tensor = stored[ONNX.model[part]]
        assert isinstance(tensor, QuantizedTensor)
        assert torch.equal(tensor.read(), getattr(decoder, part).read())
    layers = [f"model.layers.{i}.mlp.fc{n}.bias" for i in range(2) for n in (1, 2)]
    assert set(result.adjusted) == {*layers, "lm_head.bias"}
    assert result.types[QKV.format(i=1)] == "Q4 bs32 asymmetric"
    assert result.types["lm_head.weight"] == "Q8 bs128 symmetric"


def failed(source: Checkpoint, path: Path) -> set[str]:
    report = verify(path, "onnx", "int4", source, "cpu", new_tokens=4, threads=1)
    return {check.name for check in report.checks if check.verdict == Verdict.FAIL}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_calibrated_graph_passes_verification(
    source: Checkpoint, result: CalibrationResult, dtype: str, tmp_path: Path
) -> None:
    path = written(source, result.checkpoint, tmp_path / "x", dtype=dtype, adjusted=result.adjusted)
    assert failed(source, path) == set()


def test_mistakes_fail_verification(
    source: Checkpoint, result: CalibrationResult, tmp_path: Path
) -> None:
    decoder, listed = result.checkpoint.decoder, result.adjusted
    first, second = decoder.layers
    dropped = replace(first, fc_in_bias=InMemoryTensor(torch.zeros(first.fc_in_bias.shape)))
    swapped = replace(first, k=SelectedRows(first.v, np.arange(first.v.shape[0])))
    scaled = replace(first, o=InMemoryTensor(source.decoder.layers[0].o.read().float() * 1.05))
    for layer, names, check in (
        (first, listed[1:], "weights.equal"),
        (dropped, listed, "weights.adjusted"),
        (swapped, listed, "weights.error"),
        (scaled, listed, "weights.error"),
    ):
        wrong = replace(result.checkpoint, decoder=replace(decoder, layers=(layer, second)))
        assert check in failed(source, written(source, wrong, tmp_path / "x", adjusted=names))


def test_a_budget_is_kept_and_its_result_passes_verification(
    source: Checkpoint, windows: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which types are taken depends on the processor's rounding; what a budget promises does not.

    Every layout is considered, each matrix gets what the allocation took for it, and at the bytes
    of the standard types no more is lost than by these.
    """
    considered: list[Mapping[MatrixId, Sequence[Choice]]] = []
    taken: list[Mapping[MatrixId, Choice]] = []

    def recorded(
        choices: Mapping[MatrixId, Sequence[Choice]], nbytes: int
    ) -> Mapping[MatrixId, Choice]:
        chosen = allocate(choices, nbytes)
        considered.append(choices)
        taken.append(chosen)
        return chosen

    monkeypatch.setattr(allocation, "allocate", recorded)
    types = variant_types(source.geometry, VARIANT)
    few = CalibrationSet(windows.train[:8], windows.validation[:2])

    standard = sum(
        codec.stored_bytes(name.tensor(source.decoder).shape) for name, codec in types.items()
    )

    def fitted(nbytes: int, bits: int = 4) -> CalibrationResult:
        variant = Variant(bits=bits)
        return calibrate_onnx(
            source, variant, few, PRESET, tmp_path / "work", SilentProgress(), nbytes
        )

    for nbytes, match in ((1000, "the budget leaves"), (1 << 30, "fit into 1.07 GB in 8")):
        with pytest.raises(UsageError, match=match):
            fitted(nbytes)
    with pytest.raises(UsageError, match="it goes with 4"):
        fitted(standard, 8)
    fit = fitted(standard)
    choices, chosen = considered[-1], taken[-1]
    layouts = {f"Q4 bs{size} asymmetric" for size in (32, 64, 128)} | {"Q8 bs128 symmetric"}
    assert all({c.type for c in of_matrix} == layouts for of_matrix in choices.values())
    assert len(set(fit.types.values())) > 1  # one type alone misses the bytes asked for below

    def name_of(matrix: MatrixId) -> str:
        packed = matrix.part in ("q", "k", "v")
        return QKV.format(i=matrix.layer) if packed else matrix.name(ONNX)

    assert {name_of(name): choice.type for name, choice in chosen.items()} == fit.types
    assert fit.expected_kl == pytest.approx(sum(c.loss for c in chosen.values()))
    lost = sum(c.loss for n in choices for c in choices[n] if c.type == types[n].name)
    assert fit.expected_kl is not None
    assert fit.expected_kl <= lost
    path = tmp_path / "x"
    plan = onnx.plan(fit.checkpoint, path, bits=4, adjusted=fit.adjusted)
    matrices = [tensor_plan for tensor_plan in plan.tensors if tensor_plan.name in fit.types]
    assert {tensor_plan.name: tensor_plan.encoding.name for tensor_plan in matrices} == fit.types
    assert 0.98 * standard < sum(tensor_plan.nbytes for tensor_plan in matrices) <= standard
    execute(plan)
    assert failed(source, path) == set()


def test_eight_bits_may_compensate_for_rounding_to_four(source: Checkpoint) -> None:
    """A difference within the rounding to 4 bits is accepted; another scale or layer is not."""
    weight = source.decoder.layers[0].o.read().float()
    four, eight = MatMulNBits(4, searched=True), MatMulNBits(8, 128, symmetric=True, searched=True)
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    rounded = four.encode(weight)
    size = (four.decode(rounded, weight.shape) - weight).square().mean().sqrt()

    def judged(stored: torch.Tensor, coarsest: MatMulNBits | None) -> float:
        decoded = InMemoryTensor(eight.decode(eight.encode(stored), stored.shape))
        return searched_error_over_bound(decoded, eight, InMemoryTensor(weight), 64, coarsest)

    corrected = weight + size * noise
    assert judged(corrected, four) < 1 < judged(corrected, eight)
    assert judged(weight, None) < 1
    for wrong in (weight * 1.05, weight + 5 * size * noise, source.decoder.layers[1].o.read()):
        assert judged(wrong.float(), four) > 1
