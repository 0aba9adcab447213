"""Sequences of different lengths as one left-padded batch, the same for every runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from cgconvert.errors import UsageError

__all__ = ["left_padded"]

Cache = TypeVar("Cache")

Run = Callable[[np.ndarray, np.ndarray, np.ndarray, Cache], tuple[np.ndarray, Cache]]
"""(input_ids [batch, length], attention_mask [batch, past + length], position_ids as input_ids,
cache) -> (logits float32 [batch, length, vocabulary], the grown cache); all three are int64."""


def left_padded(
    run: Run[Cache], cache: Cache, sequences: Sequence[Sequence[int]], steps: int
) -> list[np.ndarray]:
    """Prefill all but the last `steps` tokens of each sequence, then decode those one by one.

    The mask is 1 for tokens and 0 for padding, positions are its running sum less 1, 0 for padding:
    as clients have them (transformers, generation/utils.py). `cache` is an empty one. Returns each
    sequence's logits, float32 [its length, vocabulary].

    Raises UsageError where a sequence has nothing left to prefill.
    """
    if steps < 0:
        raise UsageError(f"the number of decode steps is {steps}; give 0 or more")
    if not sequences:
        return []
    lengths = [len(sequence) for sequence in sequences]
    if min(lengths) <= steps:
        raise UsageError(
            f"a sequence of {min(lengths)} tokens cannot be prefilled before {steps} decode steps"
        )
    width = max(lengths)
    # Padding is masked, so any id does; an artefact's own id for it may be none of the model's.
    tokens = np.zeros((len(sequences), width), dtype=np.int64)
    mask = np.zeros_like(tokens)
    for row, sequence in enumerate(sequences):
        tokens[row, width - len(sequence) :] = sequence
        mask[row, width - len(sequence) :] = 1
    positions = np.where(mask, mask.cumsum(axis=1) - 1, 0)
    parts, first = [], 0
    for last in range(width - steps, width + 1):
        given = slice(first, last)
        logits, cache = run(tokens[:, given], mask[:, :last], positions[:, given], cache)
        parts.append(logits)
        first = last
    together = np.concatenate(parts, axis=1)
    return [row[width - length :] for row, length in zip(together, lengths, strict=True)]
