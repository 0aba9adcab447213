"""Distances between two arrays of whole logits, by the measures that verify uses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cgconvert.verification.metrics import TOP, Distribution, LogitComparison, measure

__all__ = ["compare", "kl_divergence", "max_difference"]


def compare(
    reference: np.ndarray, candidate: np.ndarray, *sequences: Sequence[int], top: int = TOP
) -> LogitComparison:
    """Compare two arrays of logits [N, ids]; `sequences` are the ids that were fed."""
    next_ids = [t for s in sequences for t in (*s[1:], -1)] or [-1] * len(reference)
    kept = Distribution.of(
        reference.astype(np.float32, copy=False), next_ids, reference.shape[1], top
    )
    return measure(kept, candidate)


def kl_divergence(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Return the KL divergence at every position, in nats, over all ids."""
    return compare(reference, candidate, top=reference.shape[1]).kl


def max_difference(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Return the largest difference of two logits."""
    return compare(reference, candidate, top=reference.shape[1]).max_difference
