"""State dicts under other names, in other containers and beside other things are the same model."""

from __future__ import annotations

import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cgconvert.errors import InputError
from cgconvert.formats.read import read
from cgconvert.testing import synthetic
from cgconvert.write.execute import execute
from tests.support import plans
from tests.support.state_dicts import (
    State,
    gguf_bytes,
    optimizer,
    prefixed,
    tagged,
    training_state,
)

Wrap = Callable[[State], Any]

WRAPPED: dict[str, Wrap] = {
    "plain": dict,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "loss": 0.5},
    "model": lambda s: {"model": s, "step": 100},
    "model_state_dict": lambda s: {"model_state_dict": s, "epoch": 3},
    "module": lambda s: {"module": s, "global_steps": 100, "dp_world_size": 8},
    "net": lambda s: {"net": OrderedDict(s)},
    "params": lambda s: {"version": 1, "params": s},
    "one in another": lambda s: {"state_dict": {"model": s}, "hyper_parameters": {"lr": 0.1}},
    "three deep": lambda s: {"a": {"b": {"model": s}}},
    "with all of a training state": lambda s: {"model": s, **training_state()},
    "training state before": lambda s: {**training_state(), "model": s},
    "an optimizer as an object": lambda s: {"model": s, "optimizer": optimizer()},
    "in a tuple": lambda s: (s, training_state()["optimizer"], 3),
    "in a list in a dictionary": lambda s: {"models": [s], "losses": [0.5, 0.25]},
    "twice the same": lambda s: {"model": s, "state_dict": s},
    "other numbers among the tensors": lambda s: {**s, "epoch": 3, "_extra_state": None},
    "a small model beside": lambda s: {"model": s, "critic": {"weight": torch.ones(3)}},
    "DataParallel": lambda s: prefixed(s, "module."),
    "torch.compile": lambda s: prefixed(s, "_orig_mod."),
    "both": lambda s: prefixed(s, "module._orig_mod."),
    "both the other way round": lambda s: prefixed(s, "_orig_mod.module."),
    "Lightning": lambda s: {"state_dict": prefixed(s, "model."), **training_state()},
    "Lightning, compiled": lambda s: {"state_dict": prefixed(s, "model._orig_mod.")},
    "Lightning Fabric": lambda s: {"model": prefixed(s, "_forward_module.module.")},
    "a prefix of its own": lambda s: {"state_dict": prefixed(s, "policy.net.")},
    "base_model": lambda s: prefixed(s, "base_model.model."),
    "FSDP": lambda s: {
        f"_fsdp_wrapped_module.{name.replace('.attn.', '._fsdp_wrapped_module.attn.')}": tensor
        for name, tensor in s.items()
    },
    "activation checkpointing": lambda s: {
        name.replace(".mlp.", "._checkpoint_wrapped_module.mlp."): tensor
        for name, tensor in s.items()
    },
    "the decoder's names without transformer": lambda s: {
        name.removeprefix("transformer."): tensor for name, tensor in s.items()
    },
    "the decoder in a module, the head beside": lambda s: {
        name.replace("transformer.", "backbone."): tensor for name, tensor in s.items()
    },
    "parameters": lambda s: {n: torch.nn.Parameter(t) for n, t in s.items()},
    "parameters with attributes": lambda s: {
        n: tagged(torch.nn.Parameter(t)) for n, t in s.items()
    },
    "tensors with attributes": lambda s: {n: tagged(t.clone()) for n, t in s.items()},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrapped_and_prefixed_state_dicts(
    kind: str, state: State, source: Path, plain_bytes: bytes, tmp_path: Path
) -> None:
    torch.save(WRAPPED[kind](state), source / "pytorch_model.bin")
    checkpoint = read(str(source))
    assert checkpoint.notes == ()
    assert gguf_bytes(checkpoint, tmp_path) == plain_bytes


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_other_protocols_of_pickle(
    protocol: int, state: State, source: Path, plain_bytes: bytes, tmp_path: Path
) -> None:
    wrapped = {"model": prefixed(state, "module."), **training_state()}
    torch.save(wrapped, source / "pytorch_model.bin", pickle_protocol=protocol)
    assert gguf_bytes(read(str(source)), tmp_path) == plain_bytes


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_prefixes_in_safetensors(
    prefix: str, state: State, source: Path, plain_bytes: bytes, tmp_path: Path
) -> None:
    save_file(prefixed(state, prefix), source / "model.safetensors")
    assert gguf_bytes(read(str(source)), tmp_path) == plain_bytes


def test_prefixes_in_shards(state: State, source: Path, plain_bytes: bytes, tmp_path: Path) -> None:
    synthetic._sharded(
        prefixed(state, "module."), source, "pytorch_model-{:05}-of-00002.bin",
        "pytorch_model.bin", torch.save,
    )  # fmt: skip
    assert gguf_bytes(read(str(source)), tmp_path) == plain_bytes


TWO_MODELS: dict[str, tuple[Wrap, str]] = {
    "model and ema": (
        lambda s: {"model": s, "ema": {n: t * 2 for n, t in s.items()}},
        "'model', 'ema'",
    ),
    "plain and wrapped": (lambda s: {**s, "best": {n: t * 2 for n, t in s.items()}}, "'', 'best'"),
    "two prefixes": (
        lambda s: {**prefixed(s, "model."), **prefixed(s, "ema.")},
        "begin with 'ema.', 'model.'",
    ),
    "a policy and its reference": (
        lambda s: {"state_dict": {**s, **prefixed(s, "ref_model.")}},
        "'', 'ref_model.'",
    ),
    "one name twice": (lambda s: {**s, **prefixed(s, "_orig_mod.")}, "are names of one tensor"),
}


@pytest.mark.parametrize("kind", TWO_MODELS)
def test_two_models_in_a_file_are_refused(kind: str, state: State, source: Path) -> None:
    wrap, message = TWO_MODELS[kind]
    torch.save(wrap(state), source / "pytorch_model.bin")
    with pytest.raises(InputError, match=message):
        read(str(source))


@pytest.mark.parametrize("layout", ["phi", "gptj"])
def test_prefixes_and_wrappers_of_other_layouts(
    layout: str, plain: Path, source: Path, tmp_path: Path
) -> None:
    shutil.rmtree(source)
    execute(plans.to_hf(read(str(plain)), source, layout=layout))
    (source / "cgconvert.json").unlink()
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").rename(tmp_path / "model.safetensors")
    shutil.copytree(source, tmp_path / "expected")
    (tmp_path / "model.safetensors").rename(tmp_path / "expected" / "model.safetensors")
    expected = read(str(tmp_path / "expected")).decoder
    bare = {name.split(".", 1)[1] if "lm_head" not in name else name: tensor
            for name, tensor in tensors.items()}  # fmt: skip
    for saved in ({"model": prefixed(tensors, "module.")}, prefixed(tensors, "model."), bare):
        torch.save(saved, source / "pytorch_model.bin")
        decoder = read(str(source)).decoder
        assert torch.equal(decoder.head.read(), expected.head.read())
        for layer, other in zip(decoder.layers, expected.layers, strict=True):
            assert torch.equal(layer.qkv.read(), other.qkv.read())
            assert torch.equal(layer.fc_out_bias.read(), other.fc_out_bias.read())
