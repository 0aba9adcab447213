"""What is no CodeGen, or not all of one, is called by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cgconvert.errors import InputError
from cgconvert.formats.read import read
from tests.support.state_dicts import (
    State,
    edit_config,
)

FOREIGN: dict[str, tuple[str, tuple[str, ...], str]] = {
    "gpt2": (
        "gpt2", ("transformer.wte.weight", "transformer.h.0.attn.c_attn.weight"),
        r"is GPT-2 \(model_type 'gpt2'\), no model of CodeGen's family .*convert_hf_to_gguf\.py",
    ),
    "gpt_neo": (
        "gpt_neo", ("transformer.wte.weight", "transformer.h.0.attn.attention.q_proj.weight"),
        r"is GPT-Neo \(model_type 'gpt_neo'\).*'optimum-cli export onnx'",
    ),
    "gpt_neox": (
        "gpt_neox", ("gpt_neox.layers.0.attention.query_key_value.weight",), "GPT-NeoX",
    ),
    "llama": (
        "llama", ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"),
        r"is a Llama, .*\(model_type 'llama'\)",
    ),
    "llama, as Meta has it": ("llama", ("layers.0.attention.wq.weight",), "is a Llama"),
    "starcoder": (
        "gpt_bigcode", ("transformer.h.0.attn.c_attn.weight", "transformer.wpe.weight"),
        "StarCoder",
    ),
    "opt": ("opt", ("model.decoder.layers.0.self_attn.k_proj.weight",), "is OPT"),
    "bloom": ("bloom", ("transformer.h.0.self_attention.query_key_value.weight",), "is BLOOM"),
    "CodeT5": ("t5", ("encoder.block.0.layer.0.SelfAttention.q.weight",), "is T5 or CodeT5"),
    "llama, called a CodeGen": (
        "codegen", ("model.layers.0.self_attn.q_proj.weight",),
        r"is Llama or a relative \(tensor model\.layers\.0\.self_attn\.q_proj\.weight, model",
    ),
    "GPT-J, called a CodeGen": (
        "codegen", ("transformer.wte.weight", "transformer.h.0.attn.q_proj.weight"),
        "of GPT-J .* says model_type 'codegen'; change it to 'gptj'",
    ),
    "a CodeGen, called a GPT-J": (
        "gptj", ("transformer.wte.weight", "transformer.h.0.attn.qkv_proj.weight"),
        "of CodeGen .*; change it to 'codegen'",
    ),
    "an adapter that is not merged": (
        "codegen",
        ("base_model.model.transformer.h.0.attn.qkv_proj.base_layer.weight",
         "base_model.model.transformer.h.0.attn.qkv_proj.lora_A.default.weight"),
        "an adapter that is not merged",
    ),
    "FSDP's flat parameters": (
        "codegen", ("_fsdp_wrapped_module._flat_param",), "FSDP's flat parameters",
    ),
    "nothing known": ("codegen", ("a.weight", "b.weight"), "its tensors are a.weight, b.weight"),
    "a classifier": (
        "codegen",
        ("score.weight", "transformer.wte.weight", "transformer.h.0.attn.qkv_proj.weight"),
        r"is a classifier \(score.weight\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_other_models_are_called_by_their_name(kind: str, suffix: str, source: Path) -> None:
    declared, names, message = FOREIGN[kind]
    edit_config(source, model_type=declared)
    tensors = {name: torch.ones(4, 4) for name in names}
    if suffix == "bin":
        torch.save(tensors, source / "pytorch_model.bin")
    else:
        save_file(tensors, source / "model.safetensors")
    with pytest.raises(InputError, match=message) as caught:
        read(str(source))
    assert "mp_num" not in str(caught.value)


def test_a_model_type_left_out_is_named(state: State, source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    del config["model_type"]
    (source / "config.json").write_text(json.dumps(config))
    save_file(state, source / "model.safetensors")
    with pytest.raises(InputError, match=r"has no model_type, such as codegen, gptj, .*`mp_num`"):
        read(str(source))
    names = ("transformer.wte.weight", "transformer.h.0.attn.q_proj.weight")
    save_file({name: torch.ones(4, 4) for name in names}, source / "model.safetensors")
    with pytest.raises(InputError, match=r"of GPT-J .* has no model_type; change it to 'gptj'"):
        read(str(source))


def test_a_prefix_of_some_names_only_is_named(state: State, source: Path) -> None:
    mixed = {("module." if ".h.1." in name else "") + name: t for name, t in state.items()}
    torch.save(mixed, source / "pytorch_model.bin")
    with pytest.raises(
        InputError, match=r"(transformer\.h\.1\.[\w.]+) is missing, and module\.\1 is there: only"
    ):
        read(str(source))


def test_missing_and_unknown_tensors_say_what_to_do(state: State, source: Path) -> None:
    changes: dict[str, State] = {
        "bias is missing; fetch the model again, or save": {
            name: tensor for name, tensor in state.items() if name != "lm_head.bias"
        },
        "loss.weight is not a CodeGen tensor; save the state dict without": {
            **state, "loss.weight": torch.ones(4)
        },
    }  # fmt: skip
    for message, changed in changes.items():
        save_file(dict(changed), source / "model.safetensors")
        with pytest.raises(InputError, match=message):
            read(str(source))


def test_a_wrong_number_of_layers_is_named(state: State, source: Path) -> None:
    save_file(state, source / "model.safetensors")
    for n_layer, fault in ((1, "h.1.* is not a CodeGen tensor"), (3, "h.2.* is missing")):
        edit_config(source, n_layer=n_layer)
        message = rf"{fault}: the number of layers is 2 in the weights and {n_layer} in the conf"
        with pytest.raises(InputError, match=message):
            read(str(source))


def test_a_shard_alone_is_called_a_part(state: State, source: Path) -> None:
    shard = {name: tensor for name, tensor in state.items() if ".h.1." in name}
    path = source / "model-00002-of-00003.safetensors"
    save_file(shard, path)
    with pytest.raises(
        InputError, match=r"h\.1\.attn.* and no .*, so it is a part of a model only"
    ):
        read(str(path))
    with pytest.raises(InputError, match=r"has model-00002-of.*, but lacks model-00001-of-00003"):
        read(str(source))


def test_a_file_with_the_suffix_of_the_other_kind_is_named(state: State, source: Path) -> None:
    path = source / "pytorch_model.bin"
    save_file(state, path)
    with pytest.raises(InputError, match=r"it is a safetensors file; rename it so .*\.safetensors"):
        read(str(source))
    path.rename(source / "model.safetensors")
    read(str(source))
    torch.save(state, source / "model.safetensors")
    with pytest.raises(
        InputError, match=r"a zip archive, as torch.save writes it; rename it .*\.bin"
    ):
        read(str(source))


def test_programs_and_whole_models_are_called_so(state: State, source: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    torch.save(layer, source / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"holds a whole model .*save model\.state_dict\(\)"):
        read(str(source))
    torch.jit.script(layer).save(source / "pytorch_model.bin")
    with pytest.raises(InputError, match="is a TorchScript archive"):
        read(str(source))
    torch.save(state, source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="torch's old format"):
        read(str(source))
    torch.save({n: t.to("meta") for n, t in state.items()}, source / "pytorch_model.bin")
    with pytest.raises(InputError, match="tensors without data"):
        read(str(source))
