"""Complete a model whose files leave out the head or the size of the vocabulary.

transformers leaves out a head that shares its weights with the embedding, and scripts resize the
vocabulary without writing its new size. Both are made explicit here, so that all other code finds a
whole model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.lazy import torch
from cgconvert.model.decoder import Geometry
from cgconvert.model.tensor import LazyTensor, Zeros
from cgconvert.model.tensor_names import TensorNames

__all__ = ["complete_head", "fit_vocabulary", "is_tied"]

COMPARED_ROWS, COMPARED_COLUMNS = 64, 1 << 12
"""Rows and columns, evenly spaced, by which the stored head and embedding are compared."""


def is_tied(config: Mapping[str, Any], config_path: Path) -> bool:
    """Return whether a config.json says that head and embedding share their weights.

    Raises InputError if it says neither yes nor no.
    """
    value = config.get("tie_word_embeddings")
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{config_path}: tie_word_embeddings is {value!r}, not true or false")
    return bool(value)


def complete_head(
    tensors: Mapping[str, LazyTensor], names: TensorNames, tied: bool
) -> tuple[dict[str, LazyTensor], list[str]]:
    """Add the head of a model that stores it with the embedding; return all tensors, and notes.

    If head and embedding are both stored and differ, both are kept, as transformers 5 does
    (modeling_utils.py: tie_weights). Nothing is added unless the model is `tied`.
    """
    complete, notes = dict(tensors), list[str]()
    if not tied:
        return complete, notes
    wte, head, bias = (names.model[part] for part in ("wte", "head", "head_bias"))
    if wte in complete and head in complete:
        if not _agree(complete[wte], complete[head]):
            notes.append(
                f"tie_word_embeddings is true, but {head} and {wte} are stored and differ: both "
                "are kept, as transformers 5 does; transformers 4 takes the embedding for both"
            )
    elif wte in complete or head in complete:
        stored = wte if wte in complete else head
        complete[wte] = complete[head] = complete[stored]
        notes.append(
            f"head and embedding share one matrix ({stored}, tie_word_embeddings); "
            "it is written for each of them"
        )
    if bias not in complete and head in complete:
        complete[bias] = Zeros(complete[head].shape[:1], complete[head].dtype)
        notes.append(f"{bias} is not stored: it is zero, as in transformers")
    return complete, notes


def fit_vocabulary(
    tensors: Mapping[str, LazyTensor], names: TensorNames, geometry: Geometry, where: str
) -> tuple[Geometry, list[str]]:
    """Take the number of rows that the weights have, if it is not the configuration's.

    Returns:
        The geometry and notes.

    Raises:
        InputError: Embedding, head and its bias differ in their rows.
    """
    rows = {
        names.model[part]: tensors[names.model[part]].shape[0]
        for part in ("wte", "head", "head_bias")
        if names.model[part] in tensors and tensors[names.model[part]].shape
    }
    counts = set(rows.values())
    if counts <= {geometry.vocab_size} or 0 in counts:
        return geometry, []
    if len(counts) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in rows.items())
        raise InputError(
            f"{where}: differ in rows: {listed}; the configuration says {geometry.vocab_size}; "
            "resize them together with model.resize_token_embeddings and save again"
        )
    (count,) = counts
    note = f"the weights have {count} rows, config.json says vocab_size {geometry.vocab_size}"
    return replace(geometry, vocab_size=count), [note]


def _agree(first: LazyTensor, second: LazyTensor) -> bool:
    """Return whether two matrices have the same numbers, as far as some of their rows show."""
    if first is second or first == second:
        return True
    if first.shape != second.shape or len(first.shape) != 2:
        return False
    step = max(1, first.shape[0] // COMPARED_ROWS)
    columns = slice(0, COMPARED_COLUMNS)
    return all(
        torch.equal(
            first.read(slice(row, row + 1), columns).double(),
            second.read(slice(row, row + 1), columns).double(),
        )
        for row in range(0, first.shape[0], step)
    )
