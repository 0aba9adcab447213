"""Damaged artefacts of every format, manifests and recipes."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from tests.faults.cases_gguf import BY_HEADERS, GGUFS
from tests.faults.cases_onnx import ONNXS
from tests.faults.cases_pickle import Payload, replace_pickle
from tests.faults.cases_safetensors import edit_json, write_file
from tests.faults.cases_zip import change_bytes
from tests.faults.matrix import ARTEFACT_COMMANDS, Case, Damage

__all__ = ["ARTEFACTS"]


def folder_case(damage: Damage, message: str, kind: str = "hf", **options: Any) -> Case:
    return Case(kind, damage, message, "source", **({"commands": ("generate",)} | options))


def leave_only_a_pickle(source: Path) -> None:
    (source / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, source / "pytorch_model.bin")
    replace_pickle(pickle.dumps(Payload(), protocol=2))(source)


def change_config(**entries: Any) -> Damage:
    return edit_json("config.json", lambda t: t.update(entries))


FOLDERS: dict[str, Case] = {
    "code of its own": folder_case(
        change_config(auto_map={"AutoModelForCausalLM": "x.Y"}), "run code"
    ),
    "a kernel from elsewhere": folder_case(
        change_config(_attn_implementation="evil/kernel"), "transformers fetches the kernel"
    ),
    "a quantizer": folder_case(
        change_config(quantization_config={"quant_method": "gptq"}), "read the weights as quantized"
    ),
    "an adapter": folder_case(write_file("adapter_config.json", "{}"), "adapter_config.json"),
    "another model": folder_case(change_config(model_type="gpt2"), "model_type is 'gpt2'"),
    "a million layers": folder_case(change_config(n_layer=1_000_000), "n_layer"),
    "a width of 60000": folder_case(change_config(n_embd=60_000), "the config says"),
    "a context of 2^30": folder_case(change_config(n_positions=1 << 30), "n_positions"),
    "weights cut short": folder_case(
        lambda s: os.truncate(s / "model.safetensors", 100_000),
        "truncated",
        commands=ARTEFACT_COMMANDS,
    ),
    "weights of another name": folder_case(
        change_bytes("model.safetensors", lambda d: d.replace(b"ln_f.bias", b"ln_f.bios")),
        "is missing",
        commands=("generate", "verify"),
        codes=BY_HEADERS,
    ),
    "weights that are only a pickle": folder_case(
        leave_only_a_pickle, "not an artefact|its pickle asks for", commands=("generate", "verify")
    ),
    "a tokenizer cut short": folder_case(
        write_file("tokenizer.json", '{"model": '),
        "not valid JSON",
        commands=("generate", "inspect"),
    ),
    "GPT-J's rotary": folder_case(
        change_config(rotary_dim=64), "transformers cannot run it", "gptj", commands=("generate",)
    ),
    "GPT-J's rotary, odd": folder_case(
        change_config(rotary_dim=7), "rotary_dim 7 must be even", "gptj", commands=("inspect",)
    ),
    "GPT-J's heads": folder_case(change_config(n_head=7), "not a multiple of n_head 7", "gptj"),
    "GPT-J's rows": folder_case(
        change_config(vocab_size=9999), r"says \[9999", "gptj", commands=("generate",)
    ),
    "GPT-J that is to be a CodeGen": folder_case(
        change_config(model_type="codegen"), "tensors of GPT-J", "gptj", commands=("inspect",)
    ),
    "Phi's rotary": folder_case(
        edit_json(
            "config.json", lambda t: t["rope_parameters"].update(partial_rotary_factor=256.0)
        ),
        "transformers cannot run it",
        "phi",
    ),
    "Phi's context": folder_case(
        change_config(max_position_embeddings=1 << 30), "n_positions", "phi"
    ),
    "Phi's rows": folder_case(
        change_config(vocab_size=9999), r"says \[9999", "phi", commands=("generate",)
    ),
}


def manifest_case(
    raw: object, message: str = "is not a cgconvert manifest", kind: str = "hf"
) -> Case:
    text = raw if isinstance(raw, str) else json.dumps(raw)
    return Case(kind, write_file("cgconvert.json", text), message, "cgconvert.json",
                ("inspect", "to-gguf", "generate"))  # fmt: skip


def manifest_entry_case(**entries: Any) -> Case:
    damage = edit_json("cgconvert.json", lambda t: t.update(entries))
    return Case("hf", damage, "is not a cgconvert manifest", "cgconvert.json", ("inspect", "to-hf"))


MANIFESTS: dict[str, Case] = {
    "nothing": manifest_case({}),
    "cut short": manifest_case('{"schema": 1', "not valid JSON"),
    "a list": manifest_case([], "not a JSON object"),
    "another schema": manifest_case({"schema": 7}, "has schema 7"),
    "brackets in brackets": manifest_case('{"a":' * 100_000, "not valid JSON"),
    "a name that is a path": manifest_entry_case(name="../../elsewhere"),
    "a name of dots": manifest_entry_case(name=".."),
    "a name of two lines": manifest_entry_case(name="a\nb"),
    "a list for the source": manifest_entry_case(source=[]),
    "a number for where it is from": manifest_entry_case(
        source={"origin": 7, "layout": "x", "sha256": ""}
    ),
    "a number for a file": manifest_entry_case(files={"model.safetensors": 7}),
}


def recipe_case(text: str, message: str) -> Case:
    return Case("recipe", write_text(text), message, "recipe.yaml", ("run",))


def write_text(text: str) -> Damage:
    return lambda path: path.write_text(text)


ALIASES = "x0: &x0 [x, x]\n" + "".join(f"x{i + 1}: &x{i + 1} [*x{i}, *x{i}]\n" for i in range(50))

RECIPES: dict[str, Case] = {
    "Python's objects": recipe_case(
        "source: !!python/object/apply:os.system ['touch payload-was-run']\nsteps: [verify]\n",
        "recipe.yaml:1",
    ),
    "aliases of aliases": recipe_case(ALIASES, "is not a recipe"),
    "brackets in brackets": recipe_case("steps: " + "[" * 60_000, "is not YAML"),
    "2 MB": recipe_case("source: x\n" + "# comment\n" * 200_000, "too large"),
    "a name twice": recipe_case("source: a\nsource: b\nsteps: [verify]\n", "stands twice"),
    "a tag without text": recipe_case("source: !!int ''\nsteps: [verify]\n", "not plain YAML"),
    "no character": recipe_case('source: "\\UFFFFFFFF"\nsteps: [verify]\n', "recipe.yaml"),
    "groups below 0": Case(
        "recipe",
        write_text("source: source\nmp_num: -4\nsteps: [to-gguf]\n"),
        "mp_num -4 is not in the range 1<=x<=4096",
        "recipe.yaml:2",
        ("run",),
    ),
    "a threshold that is no number": recipe_case(
        "source: source\nsteps: [verify]\nthresholds: {gguf F16: {logits.kl_mean: .nan}}\n",
        "nan is not a number",
    ),
    "a size that is none": recipe_case(
        "source: source\nsteps:\n  - to-hf: {max_shard_size: many, output: out}\n", "is not a size"
    ),
}

ARTEFACTS: dict[str, Case] = {
    **{f"gguf: {name}": value for name, value in GGUFS.items()},
    **{f"onnx: {name}": value for name, value in ONNXS.items()},
    **{f"folder: {name}": value for name, value in FOLDERS.items()},
    **{f"manifest: {name}": value for name, value in MANIFESTS.items()},
    **{f"recipe: {name}": value for name, value in RECIPES.items()},
}
