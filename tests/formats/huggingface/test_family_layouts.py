"""GPT-J, CodeGen2 and MOSS are read as what they are: the decoder of CodeGen, stored otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cgconvert.errors import InputError
from cgconvert.formats.read import ReadOptions, read
from cgconvert.testing import synthetic
from tests.conftest import SMALL

Make = Callable[..., Path]


def change_config(folder: Path, **entries: Any) -> None:
    """Change entries of a config.json; an entry that becomes "absent" is removed."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({key: v for key, v in config.items() if v != "absent"}))


def layers(folder: Path, **options: Any) -> list[torch.Tensor]:
    """Read q, k and v of all layers."""
    return [
        tensor.read()
        for layer in read(str(folder), ReadOptions(**options)).decoder.layers
        for tensor in (layer.q, layer.k, layer.v)
    ]


@pytest.mark.parametrize("files", ["torch", "torch-sharded", "safetensors", "safetensors-sharded"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gptj_has_the_rows_of_codegen_in_every_kind_of_file(
    files: str, dtype: torch.dtype, make_checkpoint: Make, small_state: synthetic.RandomState
) -> None:
    state, geometry = synthetic.unpacked(small_state, SMALL)
    halved = {name: tensor.to(dtype) for name, tensor in state.items()}
    folder = make_checkpoint(files, halved, geometry, name="gptj-small")
    assert read(str(folder)).layout == "gptj"
    for tensor, expected in zip(
        layers(folder), layers(make_checkpoint("safetensors")), strict=True
    ):
        assert tensor.dtype is dtype
        assert torch.equal(tensor, expected.to(dtype))


@pytest.mark.parametrize(
    ("entries", "rotary_dim"), [({"rotary_dim": None}, SMALL.head_dim), ({"rotary_dim": 16}, 16)]
)
def test_gptj_rotates_the_whole_head_if_rotary_dim_is_null(
    entries: dict[str, Any], rotary_dim: int, make_checkpoint: Make
) -> None:
    folder = make_checkpoint("gptj")
    change_config(folder, **entries)
    assert read(str(folder)).geometry.rotary_dim == rotary_dim


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu'"),
        ({"rotary_dim": "absent"}, "rotary_dim is missing"),
        ({"rotary_dim": 7}, "must be even"),
        ({"n_head": 3}, "not a multiple"),
    ],
)
def test_another_gptj_is_refused_by_the_entry(
    entries: dict[str, Any], message: str, make_checkpoint: Make
) -> None:
    folder = make_checkpoint("gptj")
    change_config(folder, **entries)
    with pytest.raises(InputError, match=message):
        read(str(folder))


def test_gptj_has_no_groups(make_checkpoint: Make) -> None:
    with pytest.raises(InputError, match=r"GPT-J stores q, k and v apart.*leave out `mp_num`"):
        read(str(make_checkpoint("gptj")), ReadOptions(mp_num=4))


def test_gptj_of_five_heads_is_read(make_checkpoint: Make) -> None:
    geometry = replace(SMALL, n_embd=320, n_inner=1280, n_head=5, mp_num=0)
    folder = make_checkpoint("gptj", synthetic.RandomState(geometry), geometry)
    assert read(str(folder)).geometry == geometry


def test_moss_has_four_groups_though_it_brings_code(make_checkpoint: Make) -> None:
    folder = make_checkpoint("moss")
    assert read(str(folder)).geometry.mp_num == 4
    for tensor, expected in zip(
        layers(folder), layers(make_checkpoint("safetensors")), strict=True
    ):
        assert torch.equal(tensor, expected)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model_type": "llama"}, "a Llama, as CodeGen2.5 and nsql-llama-2-7B are.*llama.cpp"),
        ({"model_type": "gpt_neox"}, "'gpt_neox', which is none of codegen, gptj, moss, phi"),
        ({"model_type": "absent"}, "model_type None, which is none of"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "brings its own modelling code"),
    ],
)
def test_a_model_outside_the_family_is_named(
    entries: dict[str, Any], message: str, make_checkpoint: Make
) -> None:
    folder = make_checkpoint("safetensors")
    change_config(folder, **entries)
    with pytest.raises(InputError, match=message):
        read(str(folder))


def test_a_llama_stays_one_if_a_number_of_groups_is_given(make_checkpoint: Make) -> None:
    folder = make_checkpoint("safetensors")
    change_config(folder, model_type="llama")
    with pytest.raises(InputError, match="a Llama"):
        read(str(folder), ReadOptions(mp_num=4))
