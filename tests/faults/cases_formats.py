"""Converted files given back: all formats; recipes and manifests."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from tests.faults.cases_archives import at
from tests.faults.cases_gguf import BY_HEADERS, GGUFS
from tests.faults.cases_onnx import ONNXS
from tests.faults.cases_pickle import Payload, repickled
from tests.faults.cases_safetensors import edited, written
from tests.faults.matrix import ARTEFACT, Case, Damage

__all__ = ["FORMATS"]


def folder(damage: Damage, says: str, kind: str = "hf", **how: Any) -> Case:
    return Case(kind, damage, says, "source", **({"commands": ("generate",)} | how))


def only_a_pickle(source: Path) -> None:
    (source / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, source / "pytorch_model.bin")
    repickled(pickle.dumps(Payload(), protocol=2))(source)


def config(**entries: Any) -> Damage:
    return edited("config.json", lambda t: t.update(entries))


FOLDERS: dict[str, Case] = {
    "code of its own": folder(config(auto_map={"AutoModelForCausalLM": "x.Y"}), "run code"),
    "a kernel from elsewhere": folder(config(_attn_implementation="evil/kernel"), "run code"),
    "a quantizer": folder(config(quantization_config={"quant_method": "gptq"}), "run code"),
    "an adapter": folder(written("adapter_config.json", "{}"), "adapter_config.json"),
    "another model": folder(config(model_type="gpt2"), "model_type is 'gpt2'"),
    "a million layers": folder(config(n_layer=1_000_000), "n_layer"),
    "a width of 60000": folder(config(n_embd=60_000), "the config says"),
    "a context of 2^30": folder(config(n_positions=1 << 30), "n_positions"),
    "weights cut short": folder(
        lambda s: os.truncate(s / "model.safetensors", 100_000), "truncated", commands=ARTEFACT
    ),
    "weights of another name": folder(
        at("model.safetensors", lambda d: d.replace(b"ln_f.bias", b"ln_f.bios")), "is missing",
        commands=("generate", "verify"), codes=BY_HEADERS,
    ),
    "weights that are only a pickle": folder(
        only_a_pickle, "not an artefact", commands=("generate", "verify")
    ),
    "a tokenizer cut short": folder(
        written("tokenizer.json", '{"model": '), "not valid JSON", commands=("generate", "inspect")
    ),
    "Phi's rotary": folder(
        edited("config.json", lambda t: t["rope_parameters"].update(partial_rotary_factor=256.0)),
        "transformers cannot run it", "phi",
    ),
    "Phi's context": folder(config(max_position_embeddings=1 << 30), "n_positions", "phi"),
    "Phi's rows": folder(
        config(vocab_size=9999), r"says \[9999", "phi", commands=("generate", "inspect")
    ),
}  # fmt: skip


def manifest(raw: object, says: str = "is not a cgconvert manifest", kind: str = "hf") -> Case:
    text = raw if isinstance(raw, str) else json.dumps(raw)
    return Case(kind, written("cgconvert.json", text), says, "cgconvert.json",
                ("inspect", "to-gguf", "generate"))  # fmt: skip


def named(**entries: Any) -> Case:
    damage = edited("cgconvert.json", lambda t: t.update(entries))
    return Case("hf", damage, "is not a cgconvert manifest", "cgconvert.json", ("inspect", "to-hf"))


MANIFESTS: dict[str, Case] = {
    "nothing": manifest({}),
    "cut short": manifest('{"schema": 1', "not valid JSON"),
    "a list": manifest([], "not a JSON object"),
    "another schema": manifest({"schema": 7}, "has schema 7"),
    "brackets in brackets": manifest('{"a":' * 100_000, "not valid JSON"),
    "a name that is a path": named(name="../../elsewhere"),
    "a name of dots": named(name=".."),
    "a name of two lines": named(name="a\nb"),
    "a list for the source": named(source=[]),
    "a number for where it is from": named(source={"origin": 7, "layout": "x", "sha256": ""}),
    "a number for a file": named(files={"model.safetensors": 7}),
}


def recipe(text: str, says: str) -> Case:
    return Case("recipe", written_at(text), says, "recipe.yaml", ("run",))


def written_at(text: str) -> Damage:
    return lambda path: path.write_text(text)


ALIASES = "x0: &x0 [x, x]\n" + "".join(f"x{i + 1}: &x{i + 1} [*x{i}, *x{i}]\n" for i in range(50))

RECIPES: dict[str, Case] = {
    "Python's objects": recipe(
        "source: !!python/object/apply:os.system ['touch payload-was-run']\nsteps: [verify]\n",
        "recipe.yaml:1",
    ),
    "aliases of aliases": recipe(ALIASES, "not part of a recipe"),
    "brackets in brackets": recipe("steps: " + "[" * 60_000, "is not YAML"),
    "2 MB": recipe("source: x\n" + "# comment\n" * 200_000, "too large"),
    "a name twice": recipe("source: a\nsource: b\nsteps: [verify]\n", "stands twice"),
    "a tag without text": recipe("source: !!int ''\nsteps: [verify]\n", "not plain YAML"),
    "no character": recipe('source: "\\UFFFFFFFF"\nsteps: [verify]\n', "recipe.yaml"),
    "groups below 0": Case("recipe", written_at("source: source\nmp_num: -4\nsteps: [to-gguf]\n"),
                           "-4 groups", "config.json", ("run",)),
    "a threshold that is no number": recipe(
        "source: source\nsteps: [verify]\nthresholds: {gguf F16: {logits.kl_mean: .nan}}\n",
        "nan is not a number",
    ),
    "a size that is none": recipe(
        "source: source\nsteps:\n  - to-hf: {max_shard_size: many, output: out}\n", "is not a size"
    ),
}  # fmt: skip

FORMATS: dict[str, Case] = {
    **{f"gguf: {name}": value for name, value in GGUFS.items()},
    **{f"onnx: {name}": value for name, value in ONNXS.items()},
    **{f"folder: {name}": value for name, value in FOLDERS.items()},
    **{f"manifest: {name}": value for name, value in MANIFESTS.items()},
    **{f"recipe: {name}": value for name, value in RECIPES.items()},
}
