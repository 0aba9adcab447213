"""GPT-J, CodeGen2 and MOSS are read as what they are: the decoder of CodeGen, stored otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.activations import ACT2FN

from cgconvert.errors import InputError
from cgconvert.formats.read import ReadOptions, read
from cgconvert.testing import synthetic
from cgconvert.write.execute import execute
from tests.conftest import SMALL
from tests.support import plans

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
        ({"model_type": "gpt_neox"}, "is GPT-NeoX .* if it is a CodeGen, give its own config"),
        ({"model_type": "mine"}, "'mine', which is none of codegen, gptj, moss, phi"),
        ({"model_type": "absent"}, "has no model_type, such as codegen, gptj, moss, phi"),
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


@pytest.mark.parametrize("name", ["gelu_fast", "gelu_pytorch_tanh"])
def test_other_names_of_the_same_activation_are_read(name: str, make_checkpoint: Make) -> None:
    """Transformers computes the same numbers by each name."""
    values = torch.linspace(-6, 6, 1001)
    assert torch.allclose(ACT2FN[name](values), ACT2FN["gelu_new"](values), atol=1e-6)
    folder = make_checkpoint("gptj")
    change_config(folder, activation_function=name)
    assert read(str(folder)).layout == "gptj"


def test_five_heads_fit_all_layouts_but_codegens(make_checkpoint: Make, tmp_path: Path) -> None:
    geometry = replace(SMALL, n_embd=320, n_inner=1280, n_head=5, mp_num=0)
    checkpoint = read(
        str(make_checkpoint("gptj", synthetic.RandomState(geometry), geometry, name="gptj-five"))
    )
    with pytest.raises(InputError, match=r"5 heads.*use `layout=\"phi\"` or `layout=\"gptj\"`"):
        plans.to_hf(checkpoint, tmp_path / "hf")
    for layout in ("gptj", "phi"):
        execute(plans.to_hf(checkpoint, tmp_path / layout, layout=layout))
        again = read(str(tmp_path / layout))
        assert torch.equal(again.decoder.layers[1].k.read(), checkpoint.decoder.layers[1].k.read())
    assert execute(plans.to_gguf(checkpoint, tmp_path / "five.gguf", type="F16")).files


def tie_without_head(folder: Path) -> None:
    """Leave the head's matrix out and set the flag."""
    state = torch.load(folder / "pytorch_model.bin")
    del state["lm_head.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    change_config(folder, tie_word_embeddings=True)


def with_prefix(folder: Path) -> None:
    """Save the state dict as a training loop with DataParallel does."""
    state = torch.load(folder / "pytorch_model.bin")
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": wrapped}, folder / "pytorch_model.bin")


@pytest.mark.parametrize("change", [tie_without_head, with_prefix])
def test_gptj_as_training_loops_save_it(
    change: Callable[[Path], None], make_checkpoint: Make, small_state: synthetic.RandomState
) -> None:
    state, geometry = synthetic.unpacked(small_state, SMALL)
    folder = make_checkpoint("torch", state, geometry, name="gptj-small")
    change(folder)
    decoder = read(str(folder)).decoder
    head = "transformer.wte.weight" if change is tie_without_head else "lm_head.weight"
    assert torch.equal(decoder.head.read(), state[head])
    assert torch.equal(decoder.layers[0].v.read(), state["transformer.h.0.attn.v_proj.weight"])


def test_measuring_the_groups_of_a_gptj_measures_nothing(make_checkpoint: Make) -> None:
    checkpoint = read(str(make_checkpoint("gptj")), ReadOptions(mp_num="auto"))
    assert checkpoint.geometry.mp_num == 0
    assert not any("measured" in note for note in checkpoint.notes)


@pytest.mark.parametrize(
    "location", ["Salesforce/codegen25-7b-mono", "NumbersStation/nsql-llama-2-7B", "codegen25-7b"]
)
def test_a_llama_is_not_downloaded(location: str) -> None:
    with pytest.raises(InputError, match=f"{location}: is a Llama, as CodeGen2.5"):
        read(location)
