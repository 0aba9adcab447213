"""Say what the tensors of a file are if they are not those of a CodeGen: for errors only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from cgconvert.model.tensor import LazyTensor
from cgconvert.model.tensor_names import TensorNames

__all__ = ["explain_tensors", "other_architecture"]

ADAPTER = re.compile(r".+\.(lora_[AB]|lora_embedding_[AB]|base_layer|modules_to_save)\..+")

ARCHITECTURES: Mapping[str, str] = {
    r"(.+\.)?h\.\d+\.attn\.c_attn\.weight": "GPT-2 or of StarCoder (gpt_bigcode)",
    r"(.+\.)?h\.\d+\.attn\.attention\.q_proj\.weight": "GPT-Neo",
    r"(.+\.)?gpt_neox\.layers\.\d+\..+|(.+\.)?embed_in\.weight": "GPT-NeoX",
    r"(.+\.)?decoder\.layers\.\d+\.self_attn\.k_proj\.weight": "OPT or another with a decoder",
    r"(.+\.)?h\.\d+\.self_attention\.query_key_value\.weight": "BLOOM or Falcon",
    r"(.+\.)?blocks\.\d+\.attn\.Wqkv\.weight": "MPT",
    r"(.+\.)?layers\.\d+\.self_attn\.q_proj\.weight": "Llama, Phi or a relative",
    r"(.+\.)?layers\.\d+\.attention\.wq\.weight": "Llama, as Meta stores it",
    r"(.+\.)?(encoder|decoder)\.block\.\d+\.layer\..+": "T5 or CodeT5",
    r"(.+\.)?encoder\.layer\.\d+\.attention\..+": "BERT or RoBERTa",
    r"(.+\.)?language_model\.(encoder|transformer)\.layers\..+": "a model of Megatron",
    r"(.+\.)?h\.\d+\.attn\.qkv_proj\.weight": "CodeGen",
    r"(.+\.)?h\.\d+\.attn\.q_proj\.weight": "GPT-J",
}
"""Names of tensors by which a model is known, and the model; the first that fits counts."""


def other_architecture(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the model that has tensors of these names, and such a name; None if not known."""
    names = sorted(names)
    for pattern, model in ARCHITECTURES.items():
        compiled = re.compile(pattern)
        name = next(filter(compiled.fullmatch, names), None)
        if name is not None:
            return model, name
    return None


def explain_tensors(
    stored: Mapping[str, LazyTensor], tensors: Mapping[str, LazyTensor], names: TensorNames
) -> str:
    """Say why tensors are not those of a layout, and what to do.

    Args:
        stored: The tensors by their names in the file.
        tensors: The tensors by their names in the layout, as far as they could be given them.
        names: The layout's names.

    Returns:
        A phrase that continues "PATH: ", or "" if nothing better is known than which tensors are
        missing.
    """
    adapter = next(filter(ADAPTER.fullmatch, sorted(stored)), None)
    if adapter:
        return (
            f"holds an adapter that is not merged ({adapter}); merge it with peft "
            "(merge_and_unload) and save the model"
        )
    empty = [name for name, tensor in stored.items() if tensor.shape == (0,)]
    if empty:
        return (
            f"{empty[0]} has no numbers: the weights are in the ranks' files of DeepSpeed ZeRO 3; "
            "run 'python zero_to_fp32.py . merged' beside them and give its output"
        )
    attention = names.layer.get("qkv") or names.layer["q"]
    if attention.format(i=0) not in tensors:
        other = other_architecture(stored)
        if other:
            return (
                f"has the tensors of {other[0]} ({other[1]}), not those of the model_type in its "
                f"config.json ({attention.format(i=0)})"
            )
        if stored:
            return f"has no {attention.format(i=0)}; its tensors are {_examples(stored)}"
    if names.model["head"] not in tensors and names.model["wte"] in tensors:
        heads = sorted(
            name for name in stored if re.fullmatch(r"(.+\.)?(score|classifier)\..+", name)
        )
        if heads:
            return f"is a classifier ({heads[0]}): it has no {names.model['head']}"
        return (
            f"{names.model['head']} is missing: it is a decoder without its head, and config.json "
            "does not say that the embedding is the head (tie_word_embeddings); save "
            "AutoModelForCausalLM, not AutoModel"
        )
    return ""


def _examples(stored: Mapping[str, LazyTensor]) -> str:
    """Name the first tensors of a file."""
    names = sorted(stored)
    return ", ".join(name[:80] for name in names[:3]) + (", ..." if len(names) > 3 else "")
