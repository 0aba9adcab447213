"""Adapters that peft itself makes, with random weights, and what peft's own merge of them is."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

__all__ = ["change_config", "change_tensors", "merged_by_peft", "save_adapter"]


def save_adapter(
    base: Path,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    rows: int | None = None,
    **settings: Any,
) -> Path:
    """Make an adapter on a base model with random weights in all that is trained, and save it.

    `settings` are those of LoraConfig. The base's vocabulary is resized to `rows` first.
    """
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows is not None:
        model.resize_token_embeddings(rows)
    config: Any = {"task_type": "CAUSAL_LM", "r": 4, **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, LoraConfig(**config))
        generator = torch.Generator().manual_seed(1)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn(parameter.shape, generator=generator) * 0.03
                parameter.data = parameter.data.to(dtype)
        adapted.save_pretrained(str(folder))
    return folder


def merged_by_peft(base: Path, adapter: Path, rows: int | None = None) -> Any:
    """Load base and adapter with transformers and peft in float32, and merge them."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows is not None:
        model.resize_token_embeddings(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def change_config(folder: Path, **fields: Any) -> None:
    """Set fields of an adapter's configuration."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_tensors(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor] | None]
) -> None:
    """Change the dictionary of an adapter's tensors, in place or by returning another."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(dict(change(tensors) or tensors), path)
