"""Folders of training loops that hold no weights, several, or those of something else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.faults.cases_invalid_values import change_state
from tests.faults.matrix import Case

__all__ = ["TRAINING"]

FILE = "pytorch_model.bin"


def saved_as(*names: str, content: Any = None) -> Callable[[Path], None]:
    """Put other files in the place of the weights, with copies of the weights as content."""

    def damage(source: Path) -> None:
        weights = (source / FILE).read_bytes()
        (source / FILE).unlink()
        for name in names:
            path = source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(weights)
            if content is not None:
                torch.save(content, path)

    return damage


def names_in_the_way(source: Path) -> None:
    """A folder, a pipe and a broken link have the names of weights."""
    (source / FILE).unlink()
    (source / FILE).mkdir()
    os.mkfifo(source / "model.pt")
    (source / "model.safetensors").symlink_to("nowhere")


def deep_folders(source: Path) -> None:
    """Many folders in folders, without weights."""
    (source / FILE).unlink()
    for first in range(40):
        for second in range(40):
            (source / str(first) / str(second) / "x").mkdir(parents=True)


def prefixes(*added: str) -> Callable[[Path], object]:
    """Store each tensor once for each prefix."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in list(tensors.items()):
            del tensors[name]
            tensors.update({prefix + name: tensor.clone() for prefix in added})

    return change_state(change)


def case(damage: Callable[[Path], object], message: str, kind: str = "torch") -> Case:
    return Case(kind, damage, message, "source")


TRAINING: dict[str, Case] = {
    f"training: {name}": training_case
    for name, training_case in {
        "a state alone": case(
            saved_as("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"),
            "state of a training run only",
        ),
        "several files": case(saved_as("a.ckpt", "b.ckpt"), "several weight files"),
        "a shard missing": case(saved_as("m-00001-of-00002.bin"), "lacks m-00002-of-00002.bin"),
        "ZeRO 3": case(
            saved_as("global_step1/zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_to_fp32.py"),
            "DeepSpeed ZeRO checkpoint",
        ),
        "tensor-parallel": case(
            saved_as("mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"),
            "tensor-parallel ranks",
        ),
        "FSDP": case(saved_as("fsdp/__0_0.distcp"), "FSDP"),
        "an optimizer as weights": case(
            saved_as(FILE, content={"state": {0: {"step": 1}}, "param_groups": []}),
            "is not a state dict",
        ),
        "weights without numbers": case(
            saved_as(FILE, content={"transformer.wte.weight": torch.zeros(0)}), "has no numbers"
        ),
        "names in the way": case(names_in_the_way, "no weights"),
        "deep folders": case(deep_folders, "no weights"),
        "two models": case(prefixes("model.", "ema."), "several models", "safetensors"),
        "two models, one without a prefix": case(
            prefixes("", "teacher."), "several models", "safetensors"
        ),
        "one tensor under two names": case(
            prefixes("", "_orig_mod."), "names of one tensor", "safetensors"
        ),
        "names of thousands of letters": case(
            prefixes("a." * 2000), "a name of over 500 characters", "safetensors"
        ),
        "an adapter that is not merged": case(
            change_state(
                lambda t: t.update(
                    {"base_model.model.transformer.h.0.attn.qkv_proj.lora_A.default.weight":
                     torch.zeros(2, 64)}
                )
            ),
            "an adapter that is not merged",
            "safetensors",
        ),
        "no head": case(
            change_state(lambda t: t.pop("lm_head.weight")), "a decoder without its head",
            "safetensors",
        ),
    }.items()
}  # fmt: skip
