"""The embedded model cut, packed and reshaped: small sources with trained weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from cgconvert import embedded
from cgconvert.formats.read import read
from cgconvert.model.decoder import Geometry
from cgconvert.model.tensor_names import CODEGEN, named_tensors
from cgconvert.testing import synthetic

__all__ = ["OWN_CODE", "change_config", "trained", "with_twice_the_heads", "write_trained"]

OWN_CODE = {
    "auto_map": {
        "AutoConfig": "configuration_codegen.CodeGenConfig",
        "AutoModelForCausalLM": "modeling_codegen.CodeGenForCausalLM",
    }
}
"""What a configuration has whose model brings its own modelling code."""

State = Mapping[str, torch.Tensor]


def trained(layers: int = 4, positions: int = 96) -> tuple[dict[str, torch.Tensor], Geometry]:
    """The state of the embedded model's first layers, in 4 groups, and its geometry."""
    whole = read(embedded.NAME)
    geometry = replace(whole.geometry, n_layer=layers, n_positions=positions)
    decoder = replace(whole.decoder, geometry=geometry, layers=whole.decoder.layers[:layers])
    named = named_tensors(decoder, CODEGEN, mp_num=geometry.mp_num)
    return {name: tensor.read() for name, _, _, tensor in named}, geometry


def with_twice_the_heads(state: State, g: Geometry) -> tuple[dict[str, torch.Tensor], Geometry]:
    """The same model with each hidden number, each head and each neuron of the MLPs twice.

    Matrices that are multiplied with numbers that are there twice are halved. q, k and v are packed
    in 1 group.
    """
    single, _ = synthetic.regroup(state, g, 1)
    doubled = {}
    for name, tensor in single.items():
        parts = tensor.chunk(3) if "qkv_proj" in name else (tensor,)
        row_repeats = 1 if "wte" in name or "lm_head" in name else 2
        repeats = (row_repeats, 2)[: tensor.ndim]
        scale = 0.5 if tensor.ndim == 2 and "wte" not in name else 1.0
        doubled[name] = torch.cat([part.repeat(repeats) * scale for part in parts])
    return doubled, replace(
        g, n_embd=2 * g.n_embd, n_head=2 * g.n_head, n_inner=2 * g.n_inner, mp_num=1
    )


def write_trained(
    folder: Path,
    groups: int,
    *,
    model: tuple[State, Geometry] | None = None,
    layout: str = "safetensors",
    config: Mapping[str, object] | None = None,
    name: str = "trained",
) -> Path:
    """Write a trained model packed in `groups` groups; `config` is added to its config.json."""
    state, geometry = synthetic.regroup(*(model or trained()), groups)
    path = synthetic.write(layout, state, geometry, folder, name, embedded.path())
    if config is not None:
        change_config(path, config)
    return path


def change_config(folder: Path, entries: Mapping[str, object]) -> None:
    """Set entries of a folder's config.json; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | dict(entries)
    kept = {key: value for key, value in config.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")
