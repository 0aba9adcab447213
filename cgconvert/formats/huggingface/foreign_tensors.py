"""Explain, for an error, what the tensors of a file are if they are not those of a CodeGen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from cgconvert.model.architectures import (
    by_tensors,
    explain_architecture,
    explain_config,
    is_of_family,
)
from cgconvert.model.tensor import LazyTensor
from cgconvert.model.tensor_names import TensorNames

__all__ = ["explain_model", "explain_tensors"]

ADAPTER = re.compile(r".+\.(lora_[AB]|lora_embedding_[AB]|base_layer|modules_to_save)\..+")

CLASSIFIER = re.compile(r"(.+\.)?(score|classifier|classification_head)\..+")

MODEL_TYPES: Mapping[str, tuple[str, ...]] = {
    "CodeGen": ("codegen", "moss"),
    "GPT-J": ("gptj",),
    "Phi": ("phi",),
}
"""The model types that are read and have the tensors of a model that `by_tensors` names."""


def explain_model(names: Iterable[str], config: Mapping[str, Any]) -> str:
    """Say which other model a source is, by its configuration or the names of its tensors.

    Args:
        names: The names of the tensors in the file.
        config: The contents of config.json; empty if there is none.

    Returns:
        A phrase that continues "PATH: ", or "" if it may be a model of the family.
    """
    names = list(names)
    is_family = is_of_family(names)
    if explanation := explain_config(config):
        advice = (
            "; the tensors have CodeGen's names: if it is a CodeGen, give its own configuration "
            "with `config`"
        )
        return explanation + (advice if is_family else "")
    known = None if is_family else by_tensors(names)
    if known is None or known[0] in MODEL_TYPES:
        return ""
    model, advice, name = known
    declared = config.get("model_type")
    of_type = f", model_type {str(declared)[:80]!r}" if declared else ""
    return explain_architecture(model, f"tensor {name}{of_type}", advice)


def explain_tensors(
    stored: Mapping[str, LazyTensor],
    tensors: Mapping[str, LazyTensor],
    names: TensorNames,
    config: Mapping[str, Any],
) -> str:
    """Say why tensors are not those of a layout as a whole, and what to do.

    Args:
        stored: The tensors by their names in the file.
        tensors: The result of `layout_tensors`: by their names in the layout where they have one.
        names: The layout's names.
        config: The contents of config.json.

    Returns:
        A phrase that continues "PATH: ", or "" if there is at most a tensor missing here or there.
    """
    adapter = next(filter(ADAPTER.fullmatch, sorted(stored)), None)
    if adapter:
        return (
            f"holds an adapter that is not merged ({adapter}); merge it with peft "
            "(merge_and_unload) and save the model"
        )
    flat = next((name for name in sorted(stored) if "flat_param" in name), None)
    if flat:
        return (
            f"holds FSDP's flat parameters ({flat}), a part of each matrix; save the full state "
            "dict (StateDictType.FULL_STATE_DICT)"
        )
    empty = [name for name, tensor in stored.items() if tensor.shape == (0,)]
    if empty:
        return (
            f"{empty[0]} has no numbers: the weights are in the ranks' files of DeepSpeed ZeRO 3; "
            "run 'python zero_to_fp32.py . merged' beside them and give its output"
        )
    attention = (names.layer.get("qkv") or names.layer["q"]).format(i=0)
    if stored and attention not in tensors:
        return _explain_attention(stored, attention, config)
    head = names.model["head"]
    if head not in tensors and names.model["wte"] in tensors:
        classifier = next((name for name in sorted(stored) if CLASSIFIER.fullmatch(name)), None)
        if classifier:
            return f"is a classifier ({classifier}) and no language model: {head} is missing"
        if not config.get("tie_word_embeddings"):
            return (
                f"{head} is missing: it is a decoder without its head, and config.json does not "
                "say that the embedding is the head (tie_word_embeddings); save the model of "
                "AutoModelForCausalLM, not that of AutoModel"
            )
    return ""


def _explain_attention(
    stored: Mapping[str, LazyTensor], attention: str, config: Mapping[str, Any]
) -> str:
    """Say which model the tensors are of, if the first layer's matrix `attention` is missing."""
    declared = config.get("model_type")
    other = by_tensors(stored)
    if other is None:
        is_known = declared is None or any(declared in types for types in MODEL_TYPES.values())
        of_type = "" if is_known else f"has model_type {str(declared)[:80]!r} and "
        examples = _examples(stored)
        return f"{of_type or 'has '}no {attention}, as a CodeGen has; its tensors are {examples}"
    model, advice, name = other
    types = MODEL_TYPES.get(model, ())
    if declared in types:
        return (
            f"has {name} and no {attention}, so it is a part of a model only; give the folder that "
            "holds all weight files, or fetch those that are missing"
        )
    if types:
        says = f"says model_type {str(declared)[:80]!r}" if declared else "has no model_type"
        return (
            f"has the tensors of {model} ({name}), and its config.json {says}; change it to "
            f"{types[0]!r}, or give the right file with `config`"
        )
    return explain_architecture(model, f"tensor {name}", advice)


def _examples(stored: Mapping[str, LazyTensor]) -> str:
    """Name the first tensors of a file."""
    names = sorted(stored)
    return ", ".join(name[:80] for name in names[:3]) + (", ..." if len(names) > 3 else "")
