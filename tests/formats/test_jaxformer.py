"""Jaxformer's arrays in any order of memory, and its configuration among other JSON files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cgconvert.errors import InputError
from cgconvert.formats.jaxformer.reader import LEAVES
from cgconvert.formats.read import ReadOptions, describe, read
from cgconvert.model import tensor
from cgconvert.model.decoder import Checkpoint, Decoder
from cgconvert.model.tensor import LazyTensor
from cgconvert.model.tensor_names import CODEGEN, named_tensors
from cgconvert.testing import synthetic
from cgconvert.write.execute import execute
from tests.conftest import SMALL
from tests.support import plans

Make = Callable[..., Path]

GEOMETRY = replace(SMALL, n_layer=3, n_embd=64, n_head=4, rotary_dim=16, n_inner=256)


@pytest.fixture
def source(make_checkpoint: Make) -> Path:
    return make_checkpoint("jaxformer", synthetic.RandomState(GEOMETRY, seed=3), GEOMETRY)


def rewrite(source: Path, change: Callable[[int, np.ndarray], np.ndarray]) -> None:
    """Write the archive again, as numpy does."""
    archive = source / "1000" / "model" / "0.npz"
    arrays = dict(np.load(archive))
    ordered = [change(i, arrays[f"arr_{i}"]) for i in range(len(arrays))]
    np.savez(archive, *ordered)


def is_fortran(source: Path, number: int) -> bool:
    """Whether numpy itself has written this array in Fortran order."""
    array: np.ndarray = np.load(source / "1000" / "model" / "0.npz")[f"arr_{number}"]
    return not array.flags.c_contiguous


def all_tensors(decoder: Decoder) -> dict[str, LazyTensor]:
    return {t.name: t.tensor for t in named_tensors(decoder, CODEGEN, mp_num=4)}


def assert_equal(first: Checkpoint, second: Checkpoint) -> None:
    expected = all_tensors(first.decoder)
    for name, value in all_tensors(second.decoder).items():
        assert torch.equal(value.read(), expected[name].read()), name


@pytest.mark.parametrize("seed", range(4))
def test_any_mixture_of_orders(seed: int, source: Path, make_checkpoint: Make) -> None:
    """Seed 0 has every array in Fortran order, as a transposed array's memory is."""
    expected = read(str(make_checkpoint("safetensors", synthetic.RandomState(GEOMETRY, seed=3),
                                        GEOMETRY)))  # fmt: skip
    choice = random.Random(seed)
    rewrite(source, lambda _, a: np.asfortranarray(a) if not seed or choice.random() < 0.5 else a)
    stacked = ("embed.w", "head", "o", "qkv", "fc_in", "fc_out_bias")
    assert seed or all(is_fortran(source, LEAVES.index(leaf)) for leaf in stacked)
    checkpoint = read(str(source))
    halves = {name: t.read().half() for name, t in all_tensors(checkpoint.decoder).items()}
    for name, value in all_tensors(expected.decoder).items():
        assert torch.equal(halves[name], value.read()), name
    shapes = {line.name: line.shape for line in describe(str(source)).tensors}
    assert shapes["arr_7.npy"] == (3, 64, 192)


def test_rows_and_columns_in_small_pieces(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = all_tensors(read(str(source)).decoder)
    whole = {name: value.read() for name, value in expected.items()}
    rewrite(source, lambda _, a: np.asfortranarray(a))
    monkeypatch.setattr(tensor, "LAST_AXIS_BYTES", 2000)
    for name, value in all_tensors(read(str(source)).decoder).items():
        for rows, cols in ((slice(None), slice(None)), (slice(5, 17), slice(3, 40)),
                           (slice(60, 64), slice(0, 1)), (slice(2, 2), slice(None))):  # fmt: skip
            part = whole[name][rows, cols] if whole[name].ndim == 2 else whole[name][rows]
            assert torch.equal(value.read(rows, cols), part), (name, rows, cols)


def test_the_order_changes_no_byte_of_the_output(source: Path, tmp_path: Path) -> None:
    execute(plans.to_gguf(read(str(source)), tmp_path / "c.gguf"))
    rewrite(source, lambda _, a: np.asfortranarray(a))
    execute(plans.to_gguf(read(str(source)), tmp_path / "fortran.gguf"))
    assert (tmp_path / "c.gguf").read_bytes() == (tmp_path / "fortran.gguf").read_bytes()


def test_bfloat16_in_fortran_order(source: Path) -> None:
    expected = read(str(source)).decoder.layers[1].fc_in.read().bfloat16()

    def to_bfloat16(_: int, array: np.ndarray) -> Any:
        bits = torch.from_numpy(array).bfloat16().view(torch.int16).numpy().view("V2")
        return np.asfortranarray(bits)

    rewrite(source, to_bfloat16)
    assert torch.equal(read(str(source)).decoder.layers[1].fc_in.read(), expected)


def test_other_json_files_beside(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    expected = read(str(source))
    (source / "config.json").rename(source / "1000" / "350m_mono.json")
    (source / "dataset.json").write_text("[1, 2]")
    (source / "wandb.json").write_text("{broken")
    (source / "ds_config.json").write_text(json.dumps({"model": {"model_layers": 1}}))
    (source / "2b_mono.json").write_text(json.dumps(config | {"model_layers": 32}))
    (source / "6b_mono.json").write_text(json.dumps(config | {"model_dim": "many"}))
    assert_equal(expected, read(str(source)))
    # The same configuration again is no contradiction.
    (source / "copy.json").write_text(json.dumps(config))
    assert_equal(expected, read(str(source)))
    # Another number of rotary dimensions changes no shape.
    (source / "other.json").write_text(json.dumps(config | {"model_pe_rotary_dims": 8}))
    with pytest.raises(InputError, match=r"copy\.json and other\.json both describe the arrays"):
        read(str(source))
    chosen = read(str(source), ReadOptions(config=source / "other.json"))
    assert chosen.geometry.rotary_dim == 8


def test_no_configuration_describes_the_arrays(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    for name, layers in (("config.json", 5), ("large.json", 6)):
        (source / name).write_text(json.dumps(config | {"model_layers": layers}))
    with pytest.raises(InputError, match=r"none of config\.json, large\.json describes the arr"):
        read(str(source))
    (source / "large.json").unlink()
    with pytest.raises(InputError, match=r"\(o\) is \[3, 64, 64\], the configuration says \[5"):
        read(str(source))


def test_a_damaged_configuration_is_named_if_there_is_no_other(source: Path) -> None:
    (source / "config.json").write_text('{"model_layers": 2,')
    with pytest.raises(InputError, match=r"config\.json: is not valid JSON"):
        read(str(source))
