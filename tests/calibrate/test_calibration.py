"""Calibration of the embedded model: what it gains, that it goes on where it was, what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cgconvert.calibrate import plans
from cgconvert.calibrate.gguf import Budget, CalibrationResult, calibrate_gguf
from cgconvert.calibrate.layerwise import Calibration
from cgconvert.calibrate.plans import CalibratedGGUF
from cgconvert.calibrate.preset import PRESETS
from cgconvert.calibrate.quantizer import CalibrationSet, Quantizer
from cgconvert.calibrate.sensitivity import Matrix, Name, sensitivities
from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.coded import Coded
from cgconvert.errors import InputError, UsageError
from cgconvert.formats.gguf import writer as gguf
from cgconvert.formats.gguf.types import ENCODINGS
from cgconvert.io.progress import Silent
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.model.decoder import Decoder
from cgconvert.model.forward import norm
from cgconvert.model.tensor import InMemory, Rows
from cgconvert.texts.text import Text, read_text
from cgconvert.verify.distribution import Distribution
from cgconvert.verify.metrics import measure
from cgconvert.verify.reference import Reference
from cgconvert.verify.verdict import Verdict
from cgconvert.verify.verify import verify
from cgconvert.write.execute import execute
from tests.conftest import first_layers

EFFORT = PRESETS["default"]


@pytest.fixture(scope="module")
def source() -> Checkpoint:
    return first_layers(2)


@pytest.fixture(scope="module")
def text() -> Text:
    whole = read_text("stdlib", "calibration")
    return replace(whole, documents=tuple(d[:6000] for d in whole.documents[:12]))


@pytest.fixture(scope="module")
def done(
    source: Checkpoint, text: Text, tmp_path_factory: pytest.TempPathFactory
) -> CalibrationResult:
    return calibrated(source, Budget(like="Q4_K_M"), text, tmp_path_factory.mktemp("work"))


def calibrated(source: Checkpoint, budget: Budget, text: Text, folder: Path) -> CalibrationResult:
    """As convert.quantize has it done, and only the first half."""
    deferred = CalibratedGGUF(source, folder / "model.gguf", text, EFFORT, {}, budget=budget)
    found: list[CalibrationResult] = []

    def keep(*arguments: Any) -> CalibrationResult:
        found.append(calibrate_gguf(*arguments))
        return found[0]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plans, "calibrate_gguf", keep)
        deferred.resolve(folder / "steps", Silent())
    return found[0]


def held_out(source: Checkpoint) -> list[list[int]]:
    ids = read_text("stdlib").ids(source.tokenizer, 2048)
    return [ids[i : i + 256] for i in range(0, 2048, 256)]


def divergence(source: Checkpoint, decoder: Decoder) -> float:
    sequences, size = held_out(source), source.tokenizer.size
    wanted = Distribution.joined(Reference(source.decoder).distributions(sequences, size))
    logits = Reference(decoder, weights=None).logits(sequences)
    return measure(wanted, np.concatenate(logits)).kl_mean


def plain(source: Decoder, types: Mapping[Name, str]) -> Decoder:
    """The same types by the search alone."""

    def coded(name: Name, weight: torch.Tensor) -> InMemory:
        codec = ENCODINGS[types[name]]
        assert isinstance(codec, BlockCodec)
        return InMemory(codec.decode(codec.encode(weight)[0], weight.shape))

    parts = ("q", "k", "v", "o", "fc_in", "fc_out")
    blocks = tuple(
        replace(b, **{p: coded((i, p), getattr(b, p).read().float()) for p in parts})
        for i, b in enumerate(source.layers)
    )
    ends = {p: coded(p, getattr(source, p).read().float()) for p in ("wte", "head")}
    return replace(source, layers=blocks, **ends)


def types_of(done: CalibrationResult) -> dict[Name, str]:
    decoder = done.checkpoint.decoder
    found: dict[Name, str] = {}
    for i, block in enumerate(decoder.layers):
        for part, tensor in vars(block).items():
            if isinstance(tensor, Coded):
                found[i, part] = tensor.codec.name
    ends = {"wte": decoder.wte, "head": decoder.head}
    return found | {p: t.codec.name for p, t in ends.items() if isinstance(t, Coded)}


def test_it_loses_far_less_than_the_search_alone(
    source: Checkpoint, done: CalibrationResult
) -> None:
    types = types_of(done)
    assert len(types) == 2 * 6 + 2
    ours = divergence(source, done.checkpoint.decoder)
    assert ours < 0.4 * divergence(source, plain(source.decoder, types))
    assert 0.2 < ours / done.expected_kl < 3


def test_it_is_no_larger_than_the_standard_mix(
    source: Checkpoint, done: CalibrationResult, tmp_path: Path
) -> None:
    for name, checkpoint in (("ours", done.checkpoint), ("plain", source)):
        plan = gguf.plan(checkpoint, tmp_path / f"{name}.gguf", type="Q4_K_M")
        execute(plan)
    ours, theirs = (tmp_path / f"{name}.gguf" for name in ("ours", "plain"))
    assert ours.stat().st_size <= theirs.stat().st_size


def test_the_file_is_verified_and_a_mistake_in_it_is_not_excused(
    source: Checkpoint, done: CalibrationResult, tmp_path: Path
) -> None:
    def failed(checkpoint: Checkpoint) -> set[str]:
        path = tmp_path / "model.gguf"
        plan = gguf.plan(checkpoint, path, type="Q4_K_M", adjusted=done.adjusted)
        execute(plan, force=True)
        report = verify(path, "gguf", "Q4_K", source, "cpu", new_tokens=4, threads=1)
        assert "weights.adjusted" in {check.name for check in report.checks}
        return {check.name for check in report.checks if check.verdict == Verdict.FAIL}

    decoder = done.checkpoint.decoder
    assert failed(done.checkpoint) == set()
    first, second = decoder.layers
    dropped = replace(first, fc_in_bias=InMemory(torch.zeros(first.fc_in_bias.shape)))
    swapped = replace(first, k=Rows(first.v, np.arange(first.v.shape[0])))
    for block, check in ((dropped, "weights.adjusted"), (swapped, "weights.error")):
        wrong = replace(decoder, layers=(block, second))
        assert check in failed(replace(done.checkpoint, decoder=wrong))


def test_vectors_that_changed_are_named(source: Checkpoint, done: CalibrationResult) -> None:
    biases = {f"blk.{i}.ffn_{part}.bias" for i in range(2) for part in ("up", "down")}
    assert set(done.adjusted) == biases | {"output.bias"}
    assert next(iter(done.table)) == "token_embd.weight"
    assert list(done.table)[-1] == "output.weight"


class StoppedError(Exception):
    pass


def test_it_goes_on_where_it_was_and_gives_the_same(
    source: Checkpoint, text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = CalibrationSet.of(text.ids(source.tokenizer), source.geometry, "text", EFFORT)
    codec = ENCODINGS["Q4_K"]
    assert isinstance(codec, BlockCodec)
    types = {(i, part): codec for i in range(2) for part in ("q", "fc_out")} | {"wte": codec}
    size = source.tokenizer.size

    def run(folder: str) -> Decoder:
        work = Quantizer(source.decoder, windows, size, EFFORT.sweeps, tmp_path / folder, Silent())
        return work.calibrated(types)

    whole = run("whole")
    layer = Calibration.layer

    def stopping(self: Calibration, i: int, state: object) -> object:
        if i == 1:
            raise StoppedError
        return layer(self, i, state)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Calibration, "layer", stopping)
        with pytest.raises(StoppedError):
            run("parts")
    assert list((tmp_path / "parts").glob("*/layer-0.safetensors"))
    parts = run("parts")
    for one, other in zip(whole.layers, parts.layers, strict=True):
        for name, tensor in vars(one).items():
            assert torch.equal(tensor.read(), getattr(other, name).read()), name


def test_no_matrix_is_worse_on_windows_held_out_than_by_the_search(
    source: Checkpoint, text: Text
) -> None:
    """With code to fit and noise to judge by, the gate has work to do."""
    generator = torch.Generator().manual_seed(0)
    windows = CalibrationSet.of(text.ids(source.tokenizer), source.geometry, "text", EFFORT)
    noise = torch.randint(0, 3900, windows.held_out.shape, generator=generator)
    codec = ENCODINGS["Q3_K"]
    assert isinstance(codec, BlockCodec)
    types: dict[Name, BlockCodec] = {(0, part): codec for part in ("q", "k", "v", "fc_in")}
    calibration = Calibration(
        source.decoder, {**types, "wte": codec}, windows.fitted, noise, EFFORT.sweeps, Silent()
    )
    eye = torch.eye(256, dtype=torch.float64)
    _, state = calibration.embedding(eye, eye)
    block, epsilon = source.decoder.layers[0], source.geometry.layer_norm_epsilon
    scale, shift = block.ln_weight.read().float(), block.ln_bias.read().float()
    x, y = (norm(s[len(windows.fitted) :], scale, shift, epsilon) for s in vars(state).values())
    found = calibration.layer(0, state)
    for part in ("q", "k", "v", "fc_in"):
        weight = getattr(block, part).read().float()
        plain = codec.decode(codec.encode(weight)[0], weight.shape)
        ours, theirs = (
            float((x @ weight.t() - y @ other.t()).double().square().sum())
            for other in (codec.decode(found[part].stored, weight.shape), plain)
        )
        assert ours <= theirs * (1 + 1e-6)
        assert found[part].fitted == (ours < theirs * (1 - 1e-6))


def of(decoder: Decoder, name: Name) -> torch.Tensor:
    tensor = (
        getattr(decoder, name)
        if isinstance(name, str)
        else getattr(decoder.layers[name[0]], name[1])
    )
    weight: torch.Tensor = tensor.read().float()
    return weight


def test_sensitivities_foretell_the_divergence(source: Checkpoint, tmp_path: Path) -> None:
    ids = torch.tensor(held_out(source))
    size = source.tokenizer.size
    noisy: dict[Name, tuple[float, torch.Tensor]] = {}
    generator = torch.Generator().manual_seed(0)

    def visit(matrix: Matrix) -> None:
        whole = of(source.decoder, matrix.name)
        assert torch.equal(whole[matrix.rows], matrix.weight)
        noise = torch.randn(whole.shape, generator=generator)
        other = whole + noise * 0.02 * whole.std()
        noisy[matrix.name] = (matrix.loss(other[matrix.rows]), other)

    gradients = sensitivities(source.decoder, ids, size, visit, tmp_path, Silent())
    assert gradients.shape == (*ids.shape, 256)
    assert not list(tmp_path.glob("entering-*"))
    block = source.decoder.layers[1]
    for name in ("wte", "head", (1, "q"), (1, "v"), (1, "o"), (1, "fc_in"), (1, "fc_out")):
        told, other = noisy[name]
        if isinstance(name, str):
            wrong = replace(source.decoder, **{name: InMemory(other)})
        else:
            changed = replace(block, **{name[1]: InMemory(other)})
            wrong = replace(source.decoder, layers=(source.decoder.layers[0], changed))
        assert 0.4 < told / divergence(source, wrong) < 2.5, name


def test_budgets(source: Checkpoint, text: Text, tmp_path: Path) -> None:
    few = replace(text, documents=text.documents[:4])

    def refused(match: str, budget: Budget, given: Text = few) -> None:
        with pytest.raises((UsageError, InputError), match=match):
            calibrated(source, budget, given, tmp_path)

    some = Budget(like="Q4_K_M")
    short = Text("mine", ("x = 1\n",), "")
    refused(r"mine: \d+ tokens are too few to calibrate with", some, short)
    refused("no matrix is called", replace(some, fixed=[("blk.9.*", "Q8_0")]))
    refused("type 'Q9' is not one of Q8_0", replace(some, fixed=[("blk.*", "Q9")]))
    refused("2 bits a weight are too few: the least is 3.44", Budget(bpw=2.0))
    refused("loses as little as", Budget(kl=1e-12))
