"""Broken and hostile adapters, each of which is the source and names a valid base beside it."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.faults.cases_pickle import Payload
from tests.faults.cases_safetensors import edit_json, write_file
from tests.faults.matrix import Case, Damage

__all__ = ["ADAPTERS"]

CONFIG, WEIGHTS, TORCH = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
QKV = "base_model.model.transformer.h.0.attn.qkv_proj"

PATTERNS = {f"h.{i}.attn": 1 for i in range(9999)}


def config_case(message: str, **fields: Any) -> Case:
    """Set fields of the configuration."""
    return Case("adapter", edit_json(CONFIG, lambda table: table | fields), message, CONFIG)


def weights_case(change: Callable[[dict[str, torch.Tensor]], object], message: str) -> Case:
    """Change the tensors in place."""

    def damage(source: Path) -> None:
        tensors = load_file(source / WEIGHTS)
        change(tensors)
        save_file(tensors, source / WEIGHTS)

    return Case("adapter", damage, message, WEIGHTS)


def as_torch_file(damage: Damage) -> Damage:
    """Save the weights with torch, then damage them."""

    def save(source: Path) -> None:
        torch.save(load_file(source / WEIGHTS), source / TORCH)
        (source / WEIGHTS).unlink()
        damage(source)

    return save


def link_weights(source: Path) -> None:
    (source / WEIGHTS).unlink()
    (source / WEIGHTS).symlink_to("/dev/zero")


def remove_base(source: Path) -> None:
    shutil.rmtree(source.parent / "base")


def break_base(source: Path) -> None:
    os.truncate(source.parent / "base" / "model.safetensors", 3000)


def tensor(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


CASES: Mapping[str, Case] = {
    "no configuration": Case(
        "adapter", lambda source: (source / CONFIG).unlink(),
        "has the weights of an adapter, but no adapter_config.json; fetch it too",
    ),
    "no weights": Case(
        "adapter", lambda source: (source / WEIGHTS).unlink(),
        "has adapter_config.json, but no adapter_model.safetensors or adapter_model.bin; fetch",
    ),
    "configuration of a git-lfs pointer": Case(
        "adapter", write_file(CONFIG, "version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
        "git-lfs pointer", CONFIG,
    ),
    "weights of a git-lfs pointer": Case(
        "adapter", write_file(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid 1\n"),
        "git-lfs pointer", WEIGHTS,
    ),
    "truncated weights": Case(
        "adapter", lambda source: os.truncate(source / WEIGHTS, 700),
        "truncated|not a safetensors file", WEIGHTS,
    ),
    "weights without end": Case("adapter", link_weights, "", WEIGHTS),
    "a pickle that runs code": Case(
        "adapter",
        as_torch_file(
            lambda source: (source / TORCH).write_bytes(pickle.dumps({"a": Payload()}))
        ),
        "", TORCH,
    ),
    "a truncated torch file": Case(
        "adapter", as_torch_file(lambda source: os.truncate(source / TORCH, 900)), "", TORCH,
    ),
    "the base is gone": Case("adapter", remove_base, "its base model: .*no such file", CONFIG),
    "the base is truncated": Case("adapter", break_base, "truncated", "model.safetensors"),
    "JSON that is a list": Case("adapter", write_file(CONFIG, "[1]"), "not a JSON object", CONFIG),
    "deep JSON": Case("adapter", write_file(CONFIG, '{"a":' * 10**5), "not valid JSON", CONFIG),
    "itself as base": config_case(
        "names its own folder as its base model", base_model_name_or_path="../source"
    ),
    "a device as base": Case(
        "adapter", edit_json(CONFIG, lambda t: t | {"base_model_name_or_path": "/dev/zero"}),
        "no checkpoint found|not a regular file", "/dev/zero",
    ),
    "a line break in the base": config_case(
        "base_model_name_or_path is not a name or a path", base_model_name_or_path="../ba\nse"
    ),
    "a base outside": config_case("no such file", base_model_name_or_path="../../../../x/y/z"),
    "a base that is a number": config_case("is not a name", base_model_name_or_path=7),
    "DoRA": config_case(r"uses DoRA \(use_dora\)", use_dora=True),
    "IA3": config_case("of the type 'IA3'", peft_type="IA3"),
    "a type of a thousand letters": config_case("of the type", peft_type="x" * 1000),
    "an unknown setting": config_case("sets 'zora_config'", zora_config={"x": 1}),
    "control characters in a setting": config_case("sets '", **{"\x1b[31m": True}),
    "PiSSA": config_case("init_lora_weights 'pissa'", init_lora_weights="pissa"),
    "an exponential pattern": config_case(
        "too intricate", alpha_pattern={"(a|b|ab)*(a|b|ab)*c": 1}
    ),
    "a polynomial pattern": config_case("too intricate", rank_pattern={".*" * 40 + "x": 1}),
    "many patterns": config_case("too many patterns", rank_pattern=PATTERNS),
    "a huge alpha": config_case("lora_alpha is 1e", lora_alpha=1e300),
    "a huge rank": config_case("r is 9", r=9 * 10**30),
    "a boolean rank": config_case("r is True", r=True),
    "half a pair": weights_case(
        lambda tensors: tensors.pop(f"{QKV}.lora_B.weight"), "has a lora_A and no lora_B"
    ),
    "ranks that differ": weights_case(
        lambda tensors: tensors.update({f"{QKV}.lora_A.weight": tensor(3, 64)}),
        r"lora_B \[192, 2\] and lora_A \[3, 64\]",
    ),
    "a module of another model": weights_case(
        lambda tensors: tensors.update({"base_model.model.h.9.weight": tensor(1)}),
        "was made for another model: the base has no h.9.weight",
    ),
    "control characters in a name": weights_case(
        lambda tensors: tensors.update({"\x1b[31m.weight": tensor(1)}), "another model"
    ),
    "a very long name": weights_case(
        lambda tensors: tensors.update({".lora_A" * 50_000 + ".weight": tensor(1)}), "",
    ),
}  # fmt: skip

ADAPTERS = {f"adapter: {name}": case for name, case in CASES.items()}
