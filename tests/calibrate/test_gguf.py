"""Calibration of the embedded model for GGUF: what it gains, and that it can be resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cgconvert.calibrate import gguf as calibrate
from cgconvert.calibrate.budget import Budget
from cgconvert.calibrate.calibrated_plan import CalibrationResult
from cgconvert.calibrate.calibration_set import CalibrationSet
from cgconvert.calibrate.gguf import CalibratedGGUF, calibrate_gguf
from cgconvert.calibrate.layerwise import LayerwiseCalibration
from cgconvert.calibrate.presets import PRESETS
from cgconvert.calibrate.quantizer import Quantizer
from cgconvert.calibrate.sensitivity import MatrixSample, sensitivities
from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.ggml import ENCODINGS
from cgconvert.codecs.quantized_tensor import QuantizedTensor
from cgconvert.errors import InputError, UsageError
from cgconvert.formats.gguf import writer as gguf
from cgconvert.formats.gguf.types import data_size
from cgconvert.io.progress import SilentProgress
from cgconvert.model.decoder import Checkpoint, Decoder
from cgconvert.model.forward import norm
from cgconvert.model.matrix_id import MatrixId
from cgconvert.model.tensor import InMemoryTensor, SelectedRows
from cgconvert.texts.text import Text, read_text
from cgconvert.verification.metrics import Distribution, measure
from cgconvert.verification.reference import Reference
from cgconvert.verification.thresholds import Verdict
from cgconvert.verification.verify import verify
from cgconvert.write.execute import execute
from tests.conftest import first_layers

PRESET = PRESETS["default"]


@pytest.fixture(scope="module")
def source() -> Checkpoint:
    return first_layers(2)


@pytest.fixture(scope="module")
def text() -> Text:
    whole = read_text("stdlib", "calibration")
    return replace(whole, documents=tuple(d[:6000] for d in whole.documents[:12]))


@pytest.fixture(scope="module")
def result(
    source: Checkpoint, text: Text, tmp_path_factory: pytest.TempPathFactory
) -> CalibrationResult:
    return calibrated(source, Budget(like="Q4_K_M"), text, tmp_path_factory.mktemp("work"))


def calibrated(source: Checkpoint, budget: Budget, text: Text, folder: Path) -> CalibrationResult:
    """The result of the calibration that a plan runs, before anything is written."""
    plan = CalibratedGGUF(source, folder / "model.gguf", text, PRESET, {}, budget=budget)
    results: list[CalibrationResult] = []

    def keep(*arguments: Any) -> CalibrationResult:
        results.append(calibrate_gguf(*arguments))
        return results[0]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(calibrate, "calibrate_gguf", keep)
        plan.resolve(folder / "steps", SilentProgress())
    return results[0]


def evaluation_windows(source: Checkpoint) -> list[list[int]]:
    ids = read_text("stdlib").ids(source.tokenizer, 2048)
    return [ids[i : i + 256] for i in range(0, 2048, 256)]


def divergence(source: Checkpoint, decoder: Decoder) -> float:
    sequences, size = evaluation_windows(source), source.tokenizer.size
    reference = Distribution.joined(Reference(source.decoder).distributions(sequences, size))
    logits = Reference(decoder, weight_dtype=None).logits(sequences)
    return measure(reference, np.concatenate(logits)).kl_mean


def replaced(decoder: Decoder, name: MatrixId, values: torch.Tensor) -> Decoder:
    """The same model with other values in one matrix."""
    if name.layer is None:
        changes: dict[str, Any] = {name.part: InMemoryTensor(values)}
        return replace(decoder, **changes)
    layers = list(decoder.layers)
    layers[name.layer] = replace(layers[name.layer], **{name.part: InMemoryTensor(values)})
    return replace(decoder, layers=tuple(layers))


def rounded(source: Decoder, types: Mapping[MatrixId, str]) -> Decoder:
    """The model in these types without calibration."""
    decoder = source
    for name, type_ in types.items():
        codec, weight = ENCODINGS[type_], name.tensor(source).read().float()
        assert isinstance(codec, BlockCodec)
        values = codec.decode_rows(codec.encode_rows(weight), weight.shape)
        decoder = replaced(decoder, name, values)
    return decoder


def types_of(result: CalibrationResult) -> dict[MatrixId, str]:
    decoder = result.checkpoint.decoder
    tensors = {name: name.tensor(decoder) for name in MatrixId.all(len(decoder.layers))}
    return {name: t.codec.name for name, t in tensors.items() if isinstance(t, QuantizedTensor)}


def test_calibration_loses_far_less_than_rounding(
    source: Checkpoint, result: CalibrationResult
) -> None:
    types = types_of(result)
    assert len(types) == 2 * 6 + 2
    calibrated = divergence(source, result.checkpoint.decoder)
    assert calibrated < 0.4 * divergence(source, rounded(source.decoder, types))
    assert result.expected_kl is not None
    assert 0.2 < calibrated / result.expected_kl < 3


def test_file_is_no_larger_than_the_standard_mix(
    source: Checkpoint, result: CalibrationResult, tmp_path: Path
) -> None:
    for name, checkpoint in (("calibrated", result.checkpoint), ("plain", source)):
        plan = gguf.plan(checkpoint, tmp_path / f"{name}.gguf", type="Q4_K_M")
        execute(plan)
        header = gguf.header_size(checkpoint, name=plan.type)
        size = header + data_size(checkpoint.decoder, "Q4_K_M")
        assert plan.nbytes == plan.output.stat().st_size
        assert 0 <= size - plan.nbytes <= 32  # the key of the type may be padded once more
    calibrated, plain = (tmp_path / f"{name}.gguf" for name in ("calibrated", "plain"))
    # The key with the name of a calibrated type takes some bytes; the matrices take no more.
    assert calibrated.stat().st_size <= plain.stat().st_size + 64


def test_file_passes_verification_and_mistakes_in_it_fail(
    source: Checkpoint, result: CalibrationResult, tmp_path: Path
) -> None:
    def failed(checkpoint: Checkpoint) -> set[str]:
        path = tmp_path / "model.gguf"
        plan = gguf.plan(checkpoint, path, type="Q4_K_M", adjusted=result.adjusted)
        execute(plan, force=True)
        report = verify(path, "gguf", "Q4_K", source, "cpu", new_tokens=4, threads=1)
        assert "weights.adjusted" in {check.name for check in report.checks}
        return {check.name for check in report.checks if check.verdict == Verdict.FAIL}

    decoder = result.checkpoint.decoder
    assert failed(result.checkpoint) == set()
    first, second = decoder.layers
    dropped = replace(first, fc_in_bias=InMemoryTensor(torch.zeros(first.fc_in_bias.shape)))
    swapped = replace(first, k=SelectedRows(first.v, np.arange(first.v.shape[0])))
    for layer, check in ((dropped, "weights.adjusted"), (swapped, "weights.error")):
        wrong = replace(decoder, layers=(layer, second))
        assert check in failed(replace(result.checkpoint, decoder=wrong))


def test_changed_vectors_are_named(source: Checkpoint, result: CalibrationResult) -> None:
    biases = {f"blk.{i}.ffn_{part}.bias" for i in range(2) for part in ("up", "down")}
    assert set(result.adjusted) == biases | {"output.bias"}
    assert next(iter(result.types)) == "token_embd.weight"
    assert list(result.types)[-1] == "output.weight"


class StoppedError(Exception):
    pass


def test_resume_gives_the_same_bytes(
    source: Checkpoint, text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = CalibrationSet.sample(text.ids(source.tokenizer), source.geometry, "text", PRESET)
    codec = ENCODINGS["Q4_K"]
    assert isinstance(codec, BlockCodec)
    names = [MatrixId(part, i) for i in range(2) for part in ("q", "fc_out")]
    types = dict.fromkeys([*names, MatrixId("wte")], codec)
    size = source.tokenizer.size

    def run(folder: str) -> Decoder:
        steps = tmp_path / folder
        quantizer = Quantizer(source.decoder, windows, size, PRESET.sweeps, steps, SilentProgress())
        return quantizer.calibrate(types)[0]

    whole = run("whole")
    layer = LayerwiseCalibration.layer

    def stopping(self: LayerwiseCalibration, i: int, state: object) -> object:
        if i == 1:
            raise StoppedError
        return layer(self, i, state)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(LayerwiseCalibration, "layer", stopping)
        with pytest.raises(StoppedError):
            run("parts")
    assert list((tmp_path / "parts").glob("*/layer-0.safetensors"))
    parts = run("parts")
    for layer_of_whole, layer_of_parts in zip(whole.layers, parts.layers, strict=True):
        for name, tensor in vars(layer_of_whole).items():
            assert torch.equal(tensor.read(), getattr(layer_of_parts, name).read()), name


def test_no_matrix_is_worse_than_rounding_on_validation_windows(
    source: Checkpoint, text: Text
) -> None:
    """Fitted to code and validated on noise, some fits have to be refused."""
    generator = torch.Generator().manual_seed(0)
    windows = CalibrationSet.sample(text.ids(source.tokenizer), source.geometry, "text", PRESET)
    noise = torch.randint(0, 3900, windows.validation.shape, generator=generator)
    codec = ENCODINGS["Q3_K"]
    assert isinstance(codec, BlockCodec)
    parts = ("q", "k", "v", "fc_in")
    types = dict.fromkeys([MatrixId("wte"), *(MatrixId(part, 0) for part in parts)], codec)
    calibration = LayerwiseCalibration(source.decoder, types, windows.train, noise, PRESET.sweeps)
    eye = torch.eye(256, dtype=torch.float64)
    _, states = calibration.embedding(eye, eye)
    layer, epsilon = source.decoder.layers[0], source.geometry.layer_norm_epsilon
    scale, shift = layer.ln_weight.read().float(), layer.ln_bias.read().float()
    x, y = (norm(s[len(windows.train) :], scale, shift, epsilon) for s in vars(states).values())
    quantized = calibration.layer(0, states)
    for part in parts:
        weight = getattr(layer, part).read().float()
        plain = codec.decode_rows(codec.encode_rows(weight), weight.shape)
        fitted_error, plain_error = (
            float((x @ weight.t() - y @ candidate.t()).double().square().sum())
            for candidate in (codec.decode_rows(quantized[part].stored, weight.shape), plain)
        )
        assert fitted_error <= plain_error * (1 + 1e-6)
        assert quantized[part].is_fitted == (fitted_error < plain_error * (1 - 1e-6))


def test_sensitivities_predict_the_divergence(source: Checkpoint, tmp_path: Path) -> None:
    ids = torch.tensor(evaluation_windows(source))
    size = source.tokenizer.size
    noisy: dict[MatrixId, tuple[float, torch.Tensor]] = {}
    generator = torch.Generator().manual_seed(0)

    def visit(sample: MatrixSample) -> None:
        weight = sample.name.tensor(source.decoder).read().float()
        assert torch.equal(weight[sample.rows], sample.weight)
        noise = torch.randn(weight.shape, generator=generator)
        values = weight + noise * 0.02 * weight.std()
        noisy[sample.name] = (sample.loss(values[sample.rows]), values)

    gradients = sensitivities(source.decoder, ids, size, visit, tmp_path, SilentProgress())
    assert gradients.shape == (*ids.shape, 256)
    assert not list(tmp_path.glob("entering-*"))
    for key in ("wte", "head", "1.q", "1.v", "1.o", "1.fc_in", "1.fc_out"):
        predicted, values = noisy[MatrixId.from_key(key)]
        changed = replaced(source.decoder, MatrixId.from_key(key), values)
        assert 0.4 < predicted / divergence(source, changed) < 2.5, key


def test_budgets_that_cannot_be_met_are_refused(
    source: Checkpoint, text: Text, tmp_path: Path
) -> None:
    short_text = replace(text, documents=text.documents[:4])

    def refused(match: str, budget: Budget, used: Text = short_text) -> None:
        with pytest.raises((UsageError, InputError), match=match):
            calibrated(source, budget, used, tmp_path)

    mix = Budget(like="Q4_K_M")
    line = Text("mine", ("x = 1\n",), "")
    refused(r"mine: \d+ tokens are too few to calibrate with", mix, line)
    refused("no matrix is called", replace(mix, fixed=[("blk.9.*", "Q8_0")]))
    refused("type 'Q9' is not one of Q8_0", replace(mix, fixed=[("blk.*", "Q9")]))
    refused("2 bits a weight are too few: the least is 3.44", Budget(bpw=2.0))
    refused("loses as little as", Budget(kl=1e-12))
