"""Distances between two arrays of whole logits, by the measures that verify uses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cgconvert.verify.distribution import TOP, Distribution
from cgconvert.verify.metrics import Loss, measure

__all__ = ["kl_divergence", "loss", "noise"]


def loss(
    reference: np.ndarray, candidate: np.ndarray, *sequences: Sequence[int], top: int = TOP
) -> Loss:
    """Compare logits `other` with `base`; `sequences` are the ids that were fed."""
    following = [t for s in sequences for t in (*s[1:], -1)] or [-1] * len(reference)
    kept = Distribution.of(
        reference.astype(np.float32, copy=False), following, reference.shape[1], top
    )
    return measure(kept, candidate)


def kl_divergence(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Return the KL divergence at every position, in nats, over all ids."""
    return loss(reference, candidate, top=reference.shape[1]).kl


def noise(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Return the largest difference of two logits."""
    return loss(reference, candidate, top=reference.shape[1]).noise
