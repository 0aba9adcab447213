"""The number of groups in qkv_proj, measured by a page of text: what is decided, and what not."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import cgconvert
from cgconvert import embedded
from cgconvert.errors import InputError, UsageError
from cgconvert.formats import qkv_groups
from cgconvert.formats.qkv_groups import FAR, GroupPerplexities, measure_groups, page_ids
from cgconvert.formats.read import ReadOptions, describe, read
from cgconvert.model.decoder import Checkpoint, Geometry, qkv_row_indices
from cgconvert.model.tensor import InMemoryTensor
from cgconvert.options import AUTO
from cgconvert.testing import synthetic
from cgconvert.verification.reference import Reference
from cgconvert.write.manifest import find_manifest
from tests.formats.adapter.adapters import save_adapter
from tests.support.trained_models import (
    OWN_CODE,
    State,
    change_config,
    trained,
    with_twice_the_heads,
    write_trained,
)

MEASURED = ReadOptions(mp_num=AUTO)


@pytest.fixture(scope="module")
def two_groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model in 2 groups, whose configuration brings its own code, as CodeGen2's does."""
    return write_trained(tmp_path_factory.mktemp("two"), 2, config=OWN_CODE)


def changed(change: Callable[[str, torch.Tensor], torch.Tensor]) -> tuple[State, Geometry]:
    """A trained model in 4 groups with other matrices."""
    state, geometry = trained(layers=6, positions=128)
    return {n: change(n, t.float()) if t.ndim == 2 else t for n, t in state.items()}, geometry


def test_the_number_that_is_not_known_is_measured(two_groups: Path) -> None:
    with pytest.raises(InputError, match='`mp_num="auto"` to measure it'):
        read(str(two_groups))
    checkpoint = read(str(two_groups), MEASURED)
    assert checkpoint.geometry.mp_num == checkpoint.origin["mp_num"] == 2
    (note,) = checkpoint.notes
    assert "trained: qkv_proj was measured to be packed in 2: the perplexity of a page" in note
    right = read(str(two_groups), ReadOptions(mp_num=2))
    for layer, expected in zip(checkpoint.decoder.layers, right.decoder.layers, strict=True):
        assert torch.equal(layer.qkv.read(), expected.qkv.read())


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_every_number_is_recognised(groups: int, tmp_path: Path) -> None:
    model = with_twice_the_heads(*trained())
    measured = measure_groups(read(str(write_trained(tmp_path, groups, model=model))))
    assert measured is not None
    assert measured.clear_winner == groups
    assert set(measured.by_number) == {1, 2, 4, 8}


@pytest.mark.parametrize("layout", ["tarball", "jaxformer", "torch-sharded"])
def test_every_layout_with_a_packed_matrix_is_measured(layout: str, tmp_path: Path) -> None:
    source = write_trained(tmp_path, 4, layout=layout)
    if layout == "jaxformer":
        change_config(source, {"tpu_version": None})
        with pytest.raises(InputError, match=r'tpu_version is None.*`mp_num="auto"`'):
            read(str(source))
    options = replace(MEASURED, tokenizer=embedded.path())
    assert read(str(source), options).geometry.mp_num == 4


def test_a_training_configuration_may_name_the_wrong_machine(tmp_path: Path) -> None:
    model = with_twice_the_heads(*trained())
    source = write_trained(tmp_path, 4, model=model, layout="jaxformer")
    change_config(source, {"tpu_version": 3})
    measured = measure_groups(read(str(source)))
    assert measured is not None
    assert measured.is_beaten(8)
    assert read(str(source), MEASURED).geometry.mp_num == 4


def test_the_figures_are_those_of_the_reference(two_groups: Path) -> None:
    checkpoint = read(str(two_groups), ReadOptions(mp_num=2))
    measured = measure_groups(checkpoint)
    assert measured is not None
    ids = page_ids(checkpoint)[: checkpoint.geometry.n_positions]
    for number, perplexity in measured.by_number.items():
        (logits,) = Reference(checkpoint.decoder.with_groups(number)).logits([ids])
        loss = torch.nn.functional.cross_entropy(
            torch.from_numpy(logits)[:-1, : checkpoint.tokenizer.size], torch.tensor(ids[1:])
        )
        assert perplexity == pytest.approx(math.exp(loss.item()), rel=1e-3)


def test_chunks_of_a_matrix_give_the_same_figures(
    two_groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = read(str(two_groups), ReadOptions(mp_num=2))
    whole = measure_groups(checkpoint)
    monkeypatch.setattr(qkv_groups, "CHUNK_BYTES", 100 * 4 * checkpoint.geometry.n_embd)
    parts = measure_groups(checkpoint)
    assert whole is not None
    assert parts is not None
    assert parts.by_number == pytest.approx(whole.by_number, rel=1e-4)


def test_a_context_shorter_than_the_page_is_enough(tmp_path: Path) -> None:
    model = trained(layers=6, positions=24)
    assert read(str(write_trained(tmp_path, 2, model=model)), MEASURED).geometry.mp_num == 2


@pytest.mark.parametrize("n_head", [8, 12])
def test_no_two_numbers_give_the_same_model(n_head: int) -> None:
    """The rows that are queries, values and keys differ, whatever the order of the heads."""
    numbers = [number for number in range(1, n_head + 1) if n_head % number == 0]
    parts = {number: [set(rows.tolist()) for rows in qkv_row_indices(n_head * 4, number)]
             for number in numbers}  # fmt: skip
    for first, second in itertools.combinations(numbers, 2):
        assert all(a != b for a, b in zip(parts[first], parts[second], strict=True))


GEOMETRIES = [
    Geometry(2, 256, 4, 32, 128, 4096, 4),
    Geometry(2, 64, 8, 4, 256, 4096, 2),
    Geometry(3, 192, 12, 8, 64, 4096, 4),
    Geometry(1, 512, 16, 32, 128, 8192, 8),
]


@pytest.mark.parametrize("sharpness", [1.0, 8.0])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: f"{g.n_embd} in {g.n_head} heads")
def test_random_weights_are_undecidable(
    geometry: Geometry, sharpness: float, tmp_path: Path
) -> None:
    state = synthetic.RandomState(geometry, seed=3, sharpness=sharpness)
    source = str(
        synthetic.write("safetensors", state, geometry, tmp_path, "random", embedded.path())
    )
    with pytest.raises(InputError, match=r"does not know English and Python.*`mp_num`"):
        read(source, MEASURED)
    checkpoint = cgconvert.load(source, mp_num=1)
    assert not checkpoint.notes
    measured = measure_groups(checkpoint)
    assert measured is not None
    assert not measured.is_page_known
    assert measured.clear_winner is None
    worst = max(measured.by_number.values()) / min(measured.by_number.values())
    assert worst < FAR


def noise(scale: float, seed: int = 0) -> Callable[[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda _, t: t + scale * t.std() * torch.randn(t.shape, generator=generator)


def rounded_to_4_bits(_: str, tensor: torch.Tensor) -> torch.Tensor:
    scale = tensor.abs().amax(1, keepdim=True) / 7
    rounded: torch.Tensor = torch.round(tensor / scale) * scale
    return rounded


def of_low_rank(_: str, tensor: torch.Tensor) -> torch.Tensor:
    """Add a matrix of rank 8 with half of the tensor's norm, as a strong fine-tune may."""
    generator = torch.Generator().manual_seed(5)
    left = torch.randn(tensor.shape[0], 8, generator=generator)
    update = left @ torch.randn(8, tensor.shape[1], generator=generator)
    return tensor + update * (0.5 * float(tensor.norm()) / float(update.norm()))


@pytest.mark.parametrize("change", [noise(0.3), rounded_to_4_bits, of_low_rank])
def test_weights_that_were_disturbed_still_tell(
    change: Callable[[str, torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    source = str(write_trained(tmp_path, 4, model=changed(change)))
    assert read(source, MEASURED).geometry.mp_num == 4
    assert not cgconvert.load(source, mp_num=4).notes


def permuted_vocabulary(name: str, tensor: torch.Tensor) -> torch.Tensor:
    rows = torch.randperm(4096, generator=torch.Generator().manual_seed(1))
    return tensor[rows] if tensor.shape[0] == len(rows) else tensor


def test_the_wrong_tokenizer_decides_nothing(tmp_path: Path) -> None:
    source = str(write_trained(tmp_path, 4, model=changed(permuted_vocabulary)))
    with pytest.raises(InputError, match="or this is not its tokenizer"):
        read(source, MEASURED)
    for number in (1, 2, 4):
        assert not cgconvert.load(source, mp_num=number).notes


def without_attention(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor * 0 if "out_proj" in name else tensor


def random_attention(name: str, tensor: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(tensor.shape, generator=generator) * tensor.std()
    return values if "qkv_proj" in name else tensor


@pytest.mark.parametrize("change", [without_attention, random_attention])
def test_a_model_that_knows_the_page_without_attention_is_unclear(
    change: Callable[[str, torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    source = str(write_trained(tmp_path, 4, model=changed(change)))
    with pytest.raises(InputError, match=r"with 4.*, too near to decide; give the number"):
        read(source, MEASURED)
    assert not cgconvert.load(source, mp_num=1).notes


def test_a_number_that_text_contradicts_gets_a_warning(two_groups: Path) -> None:
    assert not cgconvert.load(two_groups, mp_num=2).notes
    (note,) = cgconvert.load(two_groups, mp_num=4).notes
    assert "`mp_num=4` looks wrong, qkv_proj looks packed in 2: the perplexity of a page" in note


def test_the_manifest_has_the_number_that_was_measured(two_groups: Path, tmp_path: Path) -> None:
    measured = cgconvert.to_gguf(two_groups, tmp_path / "measured.gguf", mp_num="auto")
    right = cgconvert.to_gguf(two_groups, tmp_path / "right.gguf", mp_num=2)
    assert measured.path.read_bytes() == right.path.read_bytes()
    manifest = find_manifest(measured.path)
    assert manifest is not None
    assert manifest.source["origin"]["mp_num"] == 2
    assert len(measured.notes) == 1
    assert not right.notes


def test_the_base_is_measured_before_an_adapter_is_merged(tmp_path: Path) -> None:
    base = write_trained(tmp_path, 4)
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["qkv_proj"])
    measured = read(str(base), replace(MEASURED, adapter=(adapter,)))
    right = read(str(base), ReadOptions(mp_num=4, adapter=(adapter,)))
    for layer, expected in zip(measured.decoder.layers, right.decoder.layers, strict=True):
        assert torch.equal(layer.qkv.read(), expected.qkv.read())
    assert measured.origin["mp_num"] == 4


def test_inspect_measures_too(two_groups: Path) -> None:
    assert describe(str(two_groups), MEASURED).geometry["mp_num"] == 2


def test_where_q_k_and_v_are_apart_nothing_is_measured(tmp_path: Path) -> None:
    gguf = cgconvert.to_gguf(embedded.NAME, tmp_path / "model.gguf")
    again = cgconvert.load(gguf.path, mp_num="auto")
    assert again.geometry.mp_num == 0
    assert "mp_num" not in again.origin
    assert measure_groups(again) is None


def test_one_head_is_one_group(tmp_path: Path) -> None:
    geometry = Geometry(1, 64, 1, 16, 64, 4096, 1)
    state = synthetic.RandomState(geometry)
    source = synthetic.write("torch", state, geometry, tmp_path, "single", embedded.path())
    checkpoint = read(str(source), MEASURED)
    assert checkpoint.geometry.mp_num == 1
    assert not checkpoint.notes


def test_a_context_of_one_token_decides_nothing(tmp_path: Path) -> None:
    source = str(write_trained(tmp_path, 4, model=trained(layers=1, positions=1)))
    with pytest.raises(InputError, match="text does not show the number of groups"):
        read(source, MEASURED)


def test_a_word_that_is_no_number_is_refused(two_groups: Path) -> None:
    for value in ("four", "Auto", ""):
        with pytest.raises(UsageError, match=f'`mp_num="{value}"` is not a whole number, nor auto'):
            cgconvert.load(two_groups, mp_num=value)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="`mp_num=0` is not in the range 1<=x<=4096"):
        cgconvert.load(two_groups, mp_num=0)


SIZE = 4000


@pytest.mark.parametrize(
    ("perplexities", "winner", "beaten"),
    [
        ({1: 300.0, 2: 60.0, 4: 330.0}, 2, {1, 4}),
        ({1: 60.0, 2: 61.0 * FAR}, 1, {2}),
        ({1: 60.0, 2: 60.0 * FAR}, None, set()),
        ({1: 300.0, 2: 60.0, 4: 61.0}, None, {1}),
        ({1: 4000.0, 2: 501.0, 4: 4000.0}, None, set()),
        ({1: 4000.0, 2: 500.0, 4: 4000.0}, 2, {1, 4}),
        ({1: math.inf, 2: 60.0}, 2, {1}),
        ({1: math.inf, 2: math.inf}, None, set()),
    ],
)
def test_what_the_figures_decide(
    perplexities: dict[int, float], winner: int | None, beaten: set[int]
) -> None:
    measured = GroupPerplexities(perplexities, SIZE)
    assert measured.clear_winner == winner
    assert {number for number in perplexities if measured.is_beaten(number)} == beaten


def test_figures_are_written_with_three_digits() -> None:
    measured = GroupPerplexities({1: 4649.9, 2: 24.04, 4: math.inf}, SIZE)
    assert measured.figures() == "24 with 2 groups, 4650 with 1, inf with 4"
    assert GroupPerplexities({1: 3.14159}, SIZE).figures() == "3.14 with 1 group"


def test_a_nan_decides_nothing(two_groups: Path) -> None:
    checkpoint = read(str(two_groups), ReadOptions(mp_num=2))
    broken = with_nan(checkpoint)
    measured = measure_groups(broken)
    assert measured is not None
    assert set(measured.by_number.values()) == {math.inf}
    assert not measured.is_beaten(4)


def with_nan(checkpoint: Checkpoint) -> Checkpoint:
    decoder = checkpoint.decoder
    bias = decoder.ln_f_bias.read()
    bias[0] = np.nan
    return replace(checkpoint, decoder=replace(decoder, ln_f_bias=InMemoryTensor(bias)))


def test_a_plain_configuration_is_believed_without_a_measurement(tmp_path: Path) -> None:
    """A conversion would take twice as long; `verify` measures it."""
    source = write_trained(tmp_path, 2)
    assert json.loads((source / "config.json").read_text())["model_type"] == "codegen"
    checkpoint = cgconvert.load(source)
    assert checkpoint.geometry.mp_num == 4
    assert not checkpoint.notes
