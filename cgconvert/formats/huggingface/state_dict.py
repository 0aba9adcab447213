"""Read state dicts as training loops save them: in wrappers, with prefixes and old buffers.

One rule finds the state dict among the values of a file, and one gives its tensors the names of a
layout. Both refuse a file that holds two models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cgconvert.errors import InputError, first_few
from cgconvert.formats.huggingface.torch_globals import RefusedError, View
from cgconvert.model.tensor import LazyTensor
from cgconvert.model.tensor_names import TensorNames

__all__ = ["find_state_dict", "is_old_buffer", "layout_tensors"]

MAX_DEPTH = 5
"""Levels of dictionaries and lists among which a state dict is looked for."""

MAX_NAME = 500
"""The most characters of a tensor's name; searching longer ones for patterns takes long."""

EMBEDDING = re.compile(r"(.+\.)?(wte|embed_tokens|word_embeddings|embed_in|tok_embeddings)\.weight")
"""Names of a language model's embedding, by which the model is known among other state dicts."""

WRAPPERS = frozenset(
    ("_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
)
"""Parts of names that torch.compile, Lightning Fabric, FSDP and activation checkpointing put
before the name of any module that they wrap."""

USUAL_BUFFERS = ("bias", "masked_bias", "causal_mask")
BUFFER = re.compile(
    r"(.+\.)?(attn|self_attn|attention|attn\.attention)\."
    r"(?P<buffer>bias|masked_bias|causal_mask|embed_positions|scale_attn"
    r"|(rotary_emb|rotary)\.(inv_freq|cos_cached|sin_cached))"
    r"|(.+\.)?(position_ids|(rotary_emb|rotary)\.inv_freq)"
)
"""Names of buffers in files of old versions of transformers: masks and tables that are computed."""

VALUE_HEAD = re.compile(r"(.+\.)?(v_head|value_head)\..+")
"""Names of the head that reinforcement learning trains beside the model (trl)."""


def is_old_buffer(name: str) -> bool:
    """Return whether a tensor of this name is a buffer that is computed, not read."""
    return BUFFER.fullmatch(name) is not None


def find_state_dict(value: Any) -> dict[str, View]:
    """Find the model's tensors among the values of a torch file.

    The state dict is the value itself, or stands in dictionaries under any keys ("model",
    "state_dict", ...) or in lists, with epochs, optimizers and other values beside it.

    Raises RefusedError if there is none, or if there are two different models.
    """
    state_dicts = list(_state_dicts(value))
    if any(len(name) > MAX_NAME for _, views in state_dicts for name in views):
        raise RefusedError(f"its state dict has a name of more than {MAX_NAME} characters")
    models = [entry for entry in state_dicts if any(map(EMBEDDING.fullmatch, entry[1]))]
    if any(views != models[0][1] for _, views in models):
        keys = first_few([repr(key) for key, _ in models], 4, separator=", ")
        raise RefusedError(
            f"holds several models, under {keys}; save the state dict of the right one alone"
        )
    if models:
        return models[0][1]
    if not state_dicts:
        raise RefusedError("is not a state dict: it holds no tensors by their names")
    weights = [sum(name.endswith(".weight") for name in views) for _, views in state_dicts]
    return state_dicts[weights.index(max(weights))][1]


def _state_dicts(value: Any) -> Iterator[tuple[str, dict[str, View]]]:
    """Yield the key and the tensors of each dictionary that has tensors, outer ones first.

    A dictionary that is reached under several keys, even under its own, is yielded once.
    """
    level = [("", value)]
    seen = {id(value)}
    for _ in range(MAX_DEPTH):
        inner: list[tuple[str, Any]] = []
        for path, container in level:
            views = {name: view for name, view in _entries(container) if isinstance(view, View)}
            if views and isinstance(container, dict):
                yield path, views
            for key, entry in _entries(container):
                if isinstance(entry, dict | list | tuple) and id(entry) not in seen:
                    seen.add(id(entry))
                    inner.append((f"{path}.{key[:80]}".lstrip("."), entry))
        level = inner


def _entries(container: Any) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a dictionary that have a text as key, or those of a list, numbered."""
    if isinstance(container, dict):
        yield from ((key, entry) for key, entry in container.items() if isinstance(key, str))
    elif isinstance(container, list | tuple):
        yield from ((str(index), entry) for index, entry in enumerate(container))


def layout_tensors(
    tensors: Mapping[str, LazyTensor], layout: TensorNames, where: str
) -> tuple[dict[str, LazyTensor], list[str]]:
    """Give tensors their names in a layout, without prefixes.

    Buffers of old versions of transformers and value heads are left out. The prefix before
    the embedding and the last layer norm is removed from all names that begin with it; others stay
    as they are. A decoder that was saved without its head gets the layout's prefix instead.

    Args:
        tensors: The tensors by their names in the file.
        layout: The layout's names.
        where: The file or folder, for errors.

    Returns:
        The tensors by name, and notes on what was left out.

    Raises:
        InputError: The tensors are those of two models.
    """
    names: dict[str, str] = {}
    for name in tensors:
        if len(name) > MAX_NAME:
            raise InputError(f"{where}: has a tensor with a name of over {MAX_NAME} characters")
        plain = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if plain in names:
            raise InputError(f"{where}: {names[plain]} and {name} are names of one tensor")
        names[plain] = name
    buffers = [name for name in names if is_old_buffer(name)]
    value_heads = [name for name in names if VALUE_HEAD.fullmatch(name)]
    kept = names.keys() - set(buffers) - set(value_heads)
    renamed = _without_prefix(kept, layout, where)
    notes = []
    if value_heads:
        notes.append(f"the value head of reinforcement learning is left out ({value_heads[0]})")
    unusual = {
        match["buffer"] or name
        for name in buffers
        if (match := BUFFER.fullmatch(name)) and match["buffer"] not in USUAL_BUFFERS
    }
    if unusual:
        listed = first_few(sorted(unusual), 3, separator=", ")
        notes.append(f"buffers that are computed anew are left out: {listed}")
    return {new: tensors[names[old]] for old, new in renamed.items()}, notes


def _without_prefix(names: Iterable[str], layout: TensorNames, where: str) -> dict[str, str]:
    """Map names to those of the layout. Raises InputError if two models have the names."""
    names = sorted(names)
    ends = (layout.model["wte"], layout.model["ln_f_weight"])
    decoder = layout.model["wte"].partition(".")[0]  # the module that holds all but the head
    prefixes = _prefixes(names, ends)
    if prefixes:
        (prefix,) = _only(prefixes, where)
        return {name: name.removeprefix(prefix) for name in names}
    # A decoder saved without its head has no prefix of its own.
    prefixes = _prefixes(names, tuple(end.removeprefix(f"{decoder}.") for end in ends))
    if not prefixes:
        return {name: name for name in names}
    (prefix,) = _only(prefixes, where)
    head = layout.model["head"].partition(".")[0]

    def rename(name: str) -> str:
        rest = name.removeprefix(prefix)
        if not name.startswith(prefix) or rest.startswith(f"{head}."):
            return rest
        return f"{decoder}.{rest}"

    return {name: rename(name) for name in names}


def _prefixes(names: Iterable[str], ends: tuple[str, ...]) -> list[str]:
    """Return what stands before these ends of names, "" included, sorted."""
    return sorted(
        {
            name.removesuffix(end)
            for name in names
            for end in ends
            if name == end or name.endswith(f".{end}")
        }
    )


def _only(prefixes: list[str], where: str) -> list[str]:
    """Return the prefixes if there is one. Raises InputError."""
    if len(prefixes) > 1:
        shown = first_few([repr(prefix) for prefix in prefixes], 4, separator=", ")
        raise InputError(
            f"{where}: holds several models, whose names begin with {shown}; save the state dict "
            "of the right one alone"
        )
    return prefixes
