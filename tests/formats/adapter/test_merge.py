"""LoRA adapters are merged as peft merges them in float32, bit for bit; others are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import cgconvert
from cgconvert.errors import InputError
from cgconvert.formats.adapter.merge import merge
from cgconvert.model.decoder import Decoder
from cgconvert.model.tensor_names import CODEGEN, GPTJ, PHI, named_tensors
from cgconvert.testing import synthetic
from tests.formats.adapter.adapters import (
    change_config,
    change_tensors,
    merged_by_peft,
    save_adapter,
)

ALL = ["qkv_proj", "out_proj", "fc_in", "fc_out"]

VARIANTS: Mapping[str, dict[str, Any]] = {
    "qkv_proj alone": {"target_modules": ["qkv_proj"]},
    "all matrices of a layer": {"target_modules": ALL, "lora_alpha": 7},
    "all-linear": {"target_modules": "all-linear", "r": 3},
    "a regular expression": {"target_modules": r".*\.h\.[01]\.(attn|mlp)\.(out_proj|fc_out)"},
    "embedding and head": {"target_modules": ["wte", "lm_head"], "r": 16},
    "rank-stabilized": {"target_modules": ALL, "use_rslora": True, "r": 5, "lora_alpha": 3},
    "patterns": {
        "target_modules": ALL,
        "rank_pattern": {"fc_in": 6, r"^transformer\.h\.[0]\.attn\.(qkv_proj|out_proj)": 2},
        "alpha_pattern": {"h.1.mlp.fc_out": 33, "qkv_proj": 0.5},
    },
    "patterns, rank-stabilized": {
        "target_modules": ALL,
        "use_rslora": True,
        "rank_pattern": {r"h\.1\..*": 7},
        "alpha_pattern": {"out_proj": 9},
    },
    "all biases": {"target_modules": ["qkv_proj"], "bias": "all"},
    "all biases, and the head saved whole": {
        "target_modules": ["fc_in"],
        "bias": "all",
        "modules_to_save": ["lm_head", "ln_f"],
    },
    "biases of adapted modules": {"target_modules": ["fc_in", "out_proj"], "bias": "lora_only"},
    "lora_B with a bias": {"target_modules": ["fc_in", "fc_out"], "lora_bias": True},
    "head saved whole": {"target_modules": ["qkv_proj"], "modules_to_save": ["lm_head"]},
    "embedding and head saved whole": {
        "target_modules": "all-linear",
        "modules_to_save": ["wte", "lm_head", "ln_f"],
    },
    "some layers": {"target_modules": ["qkv_proj", "fc_in"], "layers_to_transform": [1]},
    "excluded modules": {"target_modules": ALL, "exclude_modules": ["mlp.fc_in"]},
    "fan_in_fan_out": {"target_modules": ALL, "fan_in_fan_out": True},
    "a bfloat16 adapter": {"target_modules": ALL, "dtype": torch.bfloat16},
    "initialized as a Gaussian": {"target_modules": ALL, "init_lora_weights": "gaussian"},
}


@pytest.fixture
def base(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint()


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return save_adapter(base, tmp_path / "adapter", target_modules=["qkv_proj", "fc_in"])


def stored(source: Path, *adapters: Path) -> dict[str, torch.Tensor]:
    """All tensors of a source with its adapters, by their names in the layout codegen."""
    decoder = cgconvert.load(source, adapter=adapters).decoder
    tensors = named_tensors(decoder, CODEGEN, mp_num=decoder.geometry.mp_num)
    return {tensor.name: tensor.tensor.read() for tensor in tensors}


def assert_equal_bits(
    actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> None:
    assert actual.keys() == expected.keys()
    different = [name for name in actual if not torch.equal(actual[name].float(), expected[name])]
    assert different == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_weights_are_those_of_peft(variant: str, base: Path, tmp_path: Path) -> None:
    folder = save_adapter(base, tmp_path / "adapter", **VARIANTS[variant])
    expected = merged_by_peft(base, folder).state_dict()
    merged = stored(base, folder)
    assert_equal_bits(merged, expected)
    unmerged = stored(base)
    assert any(not torch.equal(merged[name].float(), unmerged[name].float()) for name in merged)


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        ("torch", torch.float16),
        ("torch", torch.bfloat16),
        ("safetensors", torch.float32),
        ("jaxformer", torch.float16),  # its embedding is a sum of two, exact in the narrower types
        ("jaxformer", torch.bfloat16),
    ],
)
def test_any_base_is_widened_and_never_rounded(
    dtype: torch.dtype, layout: str, make_checkpoint: Callable[..., Path],
    small_state: Any, tmp_path: Path,
) -> None:  # fmt: skip
    """peft merges into a float32 copy of the base; the adapter is the same for every layout."""
    state = type(small_state)(small_state.geometry, seed=1, dtype=dtype)
    reference = make_checkpoint("safetensors", state)
    folder = save_adapter(reference, tmp_path / "adapter", target_modules=[*ALL, "wte"])
    expected = merged_by_peft(reference, folder).state_dict()
    source = reference if layout == "safetensors" else make_checkpoint(layout, state)
    assert_equal_bits(stored(source, folder), expected)


def test_a_matrix_of_several_tiles_has_the_same_bits(
    make_checkpoint: Callable[..., Path], small_state: Any, tmp_path: Path
) -> None:
    """3072 x 1024 is read in rows that no tile ends with, on any number of threads."""
    geometry = type(small_state.geometry)(1, 1024, 16, 32, 64, 4096, 4)
    source = make_checkpoint("safetensors", type(small_state)(geometry, seed=2), geometry)
    folder = save_adapter(source, tmp_path / "adapter", target_modules=[*ALL, "wte"], r=8)
    expected = merged_by_peft(source, folder).state_dict()
    decoder = cgconvert.load(source, adapter=folder).decoder
    for threads in (1, 3):
        torch.set_num_threads(threads)
        for tensor in named_tensors(decoder, CODEGEN, mp_num=4):
            if tensor.part in ("qkv", "fc_out", "wte"):
                rows = [slice(i, i + 700) for i in range(0, tensor.tensor.shape[0], 700)]
                parts = torch.cat([tensor.tensor.read(part) for part in rows])
                assert torch.equal(parts, expected[tensor.name]), tensor.name
                columns = tensor.tensor.read(slice(None), slice(5, 900))
                assert torch.equal(columns, expected[tensor.name][:, 5:900])
    torch.set_num_threads(1)


def test_weights_saved_as_bin(base: Path, adapter: Path) -> None:
    expected = stored(base, adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(tensors, adapter / "adapter_model.bin")
    assert_equal_bits(stored(base, adapter), expected)


def test_names_with_the_adapters_own_name(base: Path, tmp_path: Path) -> None:
    folder = save_adapter(
        base, tmp_path / "adapter", target_modules=["qkv_proj", "wte"], modules_to_save=["lm_head"]
    )
    expected = stored(base, folder)

    def with_adapter_name(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        names = {
            "lora_A.weight": "lora_A.default.weight",
            "lora_B.weight": "lora_B.default.weight",
            "lora_embedding_A": "lora_embedding_A.default",
            "lora_embedding_B": "lora_embedding_B.default",
            "lm_head.weight": "lm_head.modules_to_save.default.weight",
            "lm_head.bias": "lm_head.modules_to_save.default.bias",
        }
        ends = {end: name for name in tensors for end in names if name.endswith(end)}
        assert ends.keys() == names.keys()
        return {
            next((name.removesuffix(e) + n for e, n in names.items() if name.endswith(e)), name): t
            for name, t in tensors.items()
        }

    change_tensors(folder, with_adapter_name)
    assert_equal_bits(stored(base, folder), expected)


def test_several_adapters_are_merged_in_order(base: Path, adapter: Path, tmp_path: Path) -> None:
    second = save_adapter(base, tmp_path / "second", target_modules=["fc_in"], lora_alpha=100)
    merged = merged_by_peft(base, adapter)
    merged.save_pretrained(tmp_path / "merged")
    expected = merged_by_peft(tmp_path / "merged", second).state_dict()
    assert_equal_bits(stored(base, adapter, second), expected)


@pytest.mark.parametrize("targets", [["qkv_proj"], ["qkv_proj", "wte", "lm_head"]], ids=str)
def test_added_tokens(targets: list[str], base: Path, tmp_path: Path) -> None:
    """peft saves embedding and head whole if the vocabulary was resized."""
    folder = save_adapter(base, tmp_path / "adapter", rows=4103, target_modules=targets)
    assert any("wte" in name for name in load_file(folder / "adapter_model.safetensors"))
    expected = merged_by_peft(base, folder, rows=4103).state_dict()
    assert_equal_bits(stored(base, folder), expected)
    checkpoint = cgconvert.load(base, adapter=folder)
    assert checkpoint.geometry.vocab_size == checkpoint.config["vocab_size"] == 4103


def test_an_adapter_for_phi_on_codegen(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Phi is the same model; rows are ordered as the adapter's model has them. Not so backwards:
    a Phi does not tell in how many groups the adapter's qkv_proj was packed."""
    phi = cgconvert.to_hf(base, tmp_path / "phi", layout="phi", dtype="float32").path
    targets = ["q_proj", "v_proj", "dense", "fc1", "fc2", "embed_tokens"]
    for_phi = save_adapter(phi, tmp_path / "for-phi", target_modules=targets)
    expected = merged_by_peft(phi, for_phi).state_dict()
    for source in (phi, base):
        decoder = cgconvert.load(source, adapter=for_phi).decoder
        merged = {tensor.name: tensor.tensor.read() for tensor in named_tensors(decoder, PHI)}
        assert_equal_bits(merged, expected)
        packed = decoder.layers[0].qkv
        assert torch.equal(packed.read(), torch.cat([merged_rows(decoder, p) for p in "qkv"]))
    with pytest.raises(InputError, match=r"stores q, k and v apart: give the CodeGen itself"):
        cgconvert.load(phi, adapter=adapter)


def merged_rows(decoder: Decoder, part: str) -> torch.Tensor:
    """One of q, k and v of the first layer, as float32."""
    rows: torch.Tensor = getattr(decoder.layers[0], part).read().float()
    return rows


@pytest.mark.parametrize("files", ["safetensors", "torch"])
def test_an_adapter_for_gptj(
    files: str, make_checkpoint: Callable[..., Path], small_state: Any, tmp_path: Path
) -> None:
    state, geometry = synthetic.unpacked(small_state, small_state.geometry)
    source = make_checkpoint("safetensors", state, geometry, name="gptj-small")
    targets = ["q_proj", "v_proj", "out_proj", "fc_in", "fc_out", "wte"]
    folder = save_adapter(source, tmp_path / "adapter", target_modules=targets, bias="all")
    expected = merged_by_peft(source, folder).state_dict()
    if files == "torch":
        source = make_checkpoint("torch", state, geometry, name="gptj-small")
    decoder = cgconvert.load(source, adapter=folder).decoder
    merged = {tensor.name: tensor.tensor.read() for tensor in named_tensors(decoder, GPTJ)}
    assert_equal_bits(merged, expected)


REFUSED: Mapping[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, r"uses DoRA \(use_dora\), not merged here; merge it with peft's"),
    "aLoRA": ({"alora_invocation_tokens": [1, 2]}, r"activated LoRA.*alora_invocation_tokens"),
    "arrow": ({"arrow_config": {"top_k": 3}}, "Arrow routing"),
    "KaSA": ({"kasa_config": {"beta": 1}}, "KaSA"),
    "replication": ({"layer_replication": [[0, 1], [0, 1]]}, "replicated layers"),
    "Megatron": ({"megatron_config": {"a": 1}}, "Megatron"),
    "parameters": ({"target_parameters": ["x"]}, "target_parameters"),
    "tokens": ({"trainable_token_indices": [3]}, "separately trained tokens"),
    "two": ({"use_dora": True, "use_qalora": True}, r"DoRA \(use_dora\), QA-LoRA \(use_qalora\)"),
    "unknown": ({"use_zora": True}, "sets 'use_zora', whose effect is not known here"),
    "tying": ({"ensure_weight_tying": True}, "ensure_weight_tying"),
    **{
        start: ({"init_lora_weights": start}, f"init_lora_weights '{start}' has changed the base")
        for start in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga")
    },
    **{
        kind: ({"peft_type": kind}, f"of the type '{kind}'; only LORA is merged")
        for kind in ("IA3", "LOHA", "LOKR", "ADALORA", "VERA", "OFT", "BOFT", "PROMPT_TUNING",
                     "PREFIX_TUNING", "P_TUNING", "LN_TUNING", "XLORA", "DELORA")
    },
    "no type": ({"peft_type": None}, "of no peft_type"),
    "rank": ({"r": 5}, r"with rank 5 its base needs \[768, 5\] and \[5, 256\]"),
    "rank of a pattern": ({"rank_pattern": {"fc_in": 2}}, r"fc_in has lora_B .* with rank 2"),
    "no rank": ({"r": 0}, "r is 0, not a whole number from 1 on"),
    "rank as text": ({"r": "4"}, "r is '4', not a whole number"),
    "alpha": ({"lora_alpha": "high"}, "lora_alpha is 'high', not a number"),
    "slow pattern": ({"alpha_pattern": {"(.*)*(.*)*x": 2}}, "too intricate to be matched safely"),
    "broken pattern": ({"rank_pattern": {"(": 2}}, "which is no regular expression"),
    "target left out": ({"target_modules": ["qkv_proj"]}, "target_modules leaves it out"),
    "target without factors": (
        {"target_modules": ["qkv_proj", "fc_in", "fc_out"]}, "fc_out is in target_modules and has",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_merged_is_refused_by_name(case: str, base: Path, adapter: Path) -> None:
    fields, message = REFUSED[case]
    change_config(adapter, **fields)
    with pytest.raises(InputError, match=message) as caught:
        cgconvert.load(base, adapter=adapter)
    assert str(caught.value).startswith(str(adapter))
    assert "\n" not in str(caught.value)


def test_settings_without_effect_are_accepted(base: Path, adapter: Path) -> None:
    """Settings that say how the adapter was trained, and those by which peft leaves others out."""
    expected = stored(base, adapter)
    change_config(
        adapter,
        init_lora_weights="eva", eva_config={"rho": 2.0}, lora_dropout=0.1, inference_mode=False,
        use_dora=False, some_later_method=None, some_later_list=[], auto_mapping={"a": "b"},
    )  # fmt: skip
    assert_equal_bits(stored(base, adapter), expected)


QKV = "base_model.model.transformer.h.0.attn.qkv_proj"


def _drop_b(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[f"{QKV}.lora_B.weight"]


def _add(name: str, tensor: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensor

    return add


BROKEN: Mapping[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "half a pair": (_drop_b, "h.0.attn.qkv_proj has a lora_A and no lora_B"),
    "empty": (lambda tensors: tensors.clear(), "it has no tensors"),
    "DoRA's vector": (_add(f"{QKV}.lora_magnitude_vector", torch.ones(768)), "no tensor of a LoRA"),
    "another module": (_add("base_model.model.score.weight", torch.ones(2, 256)), "has no score"),
    "another model": (
        lambda tensors: {
            name.replace("transformer.h", "model.layers").replace("attn.qkv", "self_attn.w"): tensor
            for name, tensor in tensors.items()
        },
        "was made for another model: the base has no model.layers",
    ),
    "a layer too many": (
        lambda tensors: tensors | {
            name.replace(".0.", ".9."): tensor.clone() for name, tensor in tensors.items()
        },
        "the base has no transformer.h.9",
    ),
    "a wider base": (_add(f"{QKV}.lora_A.weight", torch.ones(4, 512)), r"lora_A \[4, 512\]"),
    "whole numbers": (_add(f"{QKV}.lora_A.weight", torch.ones(4, 256).int()), "not a floating"),
    "a vector": (_add(f"{QKV}.lora_A.weight", torch.ones(4)), r"lora_A \[4\]"),
    "two adapters": (
        _add(f"{QKV}.lora_A.second.weight", torch.ones(4, 256)), "stands there twice",
    ),
    "a bias for a matrix without": (_add(f"{QKV}.lora_B.bias", torch.ones(768)), "has no bias in"),
    "an embedding's factors elsewhere": (
        lambda tensors: {
            name.replace("lora_", "lora_embedding_").removesuffix(".weight"): tensor
            for name, tensor in tensors.items()
        },
        "is not the embedding",
    ),
    "head of other rows": (
        _add("base_model.model.lm_head.weight", torch.ones(4100, 256)), "vocabulary's rows differ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_weights_are_one_line(case: str, base: Path, adapter: Path) -> None:
    change, message = BROKEN[case]
    change_tensors(adapter, change)
    with pytest.raises(InputError, match=message) as caught:
        cgconvert.load(base, adapter=adapter)
    assert str(caught.value).startswith(str(adapter / "adapter_model.safetensors"))


def test_missing_files(base: Path, adapter: Path) -> None:
    for place in (base, adapter / "adapter_model.safetensors"):
        with pytest.raises(
            InputError, match=r"is not an adapter: give the folder .*peft saved one"
        ):
            cgconvert.load(base, adapter=place)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no adapter_model.safetensors or adapter_model.bin"):
        cgconvert.load(base, adapter=adapter)


def test_a_tied_embedding_cannot_be_changed(base: Path, adapter: Path, tmp_path: Path) -> None:
    plain = cgconvert.load(base)
    tied = replace(plain, config={**plain.config, "tie_word_embeddings": True})
    assert merge(tied, adapter).decoder.wte is plain.decoder.wte
    for name, saved in {"wte": None, "qkv_proj": ["lm_head"]}.items():
        folder = save_adapter(base, tmp_path / name, target_modules=[name], modules_to_save=saved)
        with pytest.raises(InputError, match="which the base ties to each other"):
            merge(tied, folder)
