"""How far a candidate's logits are from a reference's.

Every function takes logits [positions, ids] restricted to real tokens: rows of the vocabulary that
no token has must never count, so cut both arrays to the tokenizer's size first. Work is done in
float64, some positions at a time. NaN in, NaN out: who then asks `value <= bound` gets False.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "Loss",
    "TopTwo",
    "kl_divergence",
    "measure",
    "nmse",
    "noise",
    "perplexity_ratio",
    "relative_error",
    "top_k_agreement",
    "top_two",
]

ROWS = 64
"""Positions in float64 at once: 26 MB an array at CodeGen's vocabulary."""


@dataclass(frozen=True)
class TopTwo:
    """The best id at each position and how far the second lies below it (logit units)."""

    ids: np.ndarray
    margins: np.ndarray


@dataclass(frozen=True)
class Loss:
    """All measures over all positions of several sequences.

    `kl` holds every position's divergence in order; `noise` is max |logit difference|.
    """

    kl: np.ndarray
    relative_error: float
    nmse: float
    noise: float
    top1: float
    top5: float
    perplexity_ratio: float
    perplexity_error: float

    @property
    def kl_mean(self) -> float:
        return float(self.kl.mean())

    @property
    def kl_p99(self) -> float:
        return float(np.percentile(self.kl, 99))


def measure(
    reference: np.ndarray, candidate: np.ndarray, sequences: Sequence[Sequence[int]]
) -> Loss:
    """Compare logits [all tokens of all sequences, ids] in the sequences' order."""
    with np.errstate(invalid="ignore"):  # infinite logits become NaN, which is how they show
        ratio, error = perplexity_ratio(reference, candidate, sequences)
        return Loss(
            kl=kl_divergence(reference, candidate),
            relative_error=relative_error(reference, candidate),
            nmse=nmse(reference, candidate),
            noise=noise(reference, candidate),
            top1=top_k_agreement(reference, candidate, 1),
            top5=top_k_agreement(reference, candidate, 5),
            perplexity_ratio=ratio,
            perplexity_error=error,
        )


def top_two(logits: np.ndarray, allowed: int) -> TopTwo:
    """Among the first `allowed` ids; equal logits go to the lowest id, as in greedy decoding."""
    real = logits[:, :allowed]
    ids = real.argmax(-1)
    if real.shape[1] < 2:
        return TopTwo(ids, np.full(len(ids), np.inf))
    second, best = np.partition(real, (-2, -1), axis=-1)[:, -2:].T
    return TopTwo(ids, best - second)


def kl_divergence(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """KL(reference || candidate) in nats at every position, float64 [positions].

    sum_i p_i (ln p_i - ln q_i) over the probabilities of the ids given, as llama.cpp's
    tools/perplexity has it (--kl-divergence). Rounding leaves about 1e-16, of either sign.
    """
    parts = []
    for base, other in _rows(reference, candidate):
        log_p, log_q = _log_softmax(base), _log_softmax(other)
        parts.append((np.exp(log_p) * (log_p - log_q)).sum(-1))
    return np.concatenate(parts)


def noise(reference: np.ndarray, candidate: np.ndarray) -> float:
    """max |candidate - reference|, in logit units."""
    pairs = _rows(reference, candidate)
    return float(np.max([np.abs(other - base).max() for base, other in pairs]))


def relative_error(reference: np.ndarray, candidate: np.ndarray) -> float:
    """max |candidate - reference| / max |reference|, over all positions and ids."""
    return _ratio(noise(reference, candidate), float(np.abs(reference).max()))


def nmse(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Sum of squared differences over the sum of squares of the reference.

    The normalised mean squared error of llama.cpp's tests (tests/test-backend-ops.cpp: nmse).
    """
    pairs = [
        (np.square(other - base).sum(), np.square(base).sum())
        for base, other in _rows(reference, candidate)
    ]
    error, power = np.sum(pairs, axis=0)
    return _ratio(float(error), float(power))


def top_k_agreement(reference: np.ndarray, candidate: np.ndarray, k: int) -> float:
    """Mean share of the reference's k best ids that are among the candidate's k best.

    For k = 1 it is "Same top p" of llama.cpp's tools/perplexity, ties going to the lowest id.
    """
    k = min(k, reference.shape[-1])
    shares = []
    for base, other in _rows(reference, candidate):
        common = _best(base, k)[:, :, None] == _best(other, k)[:, None, :]
        shares.append(common.any(-1).mean(-1))
    return float(np.concatenate(shares).mean())


def perplexity_ratio(
    reference: np.ndarray, candidate: np.ndarray, sequences: Sequence[Sequence[int]]
) -> tuple[float, float]:
    """Perplexity of the candidate over the reference's on the sequences, and its standard error.

    ratio = exp(mean d), d being the difference of the negative log-likelihoods of each next token;
    its error is ratio * std(d) / sqrt(n). The same as "Mean PPL(Q)/PPL(base)" of llama.cpp's
    tools/perplexity, whose covariance term makes it the variance of the paired difference. The
    first token of a sequence is not predicted; both are NaN where no token is.
    """
    following = np.concatenate([[*sequence[1:], -1] for sequence in sequences])
    differences = []
    for first, (base, other) in enumerate(_rows(reference, candidate)):
        tokens = following[first * ROWS : first * ROWS + len(base)]
        known = np.flatnonzero((tokens >= 0) & (tokens < base.shape[1]))
        log_p, log_q = _log_softmax(base[known]), _log_softmax(other[known])
        differences.append((log_p - log_q)[np.arange(len(known)), tokens[known]])
    d = np.concatenate(differences)
    if len(d) < 2:
        return float("nan"), float("nan")
    ratio = float(np.exp(d.mean()))
    return ratio, ratio * float(d.std(ddof=1)) / len(d) ** 0.5


def _rows(reference: np.ndarray, candidate: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Both in float64, ROWS positions at a time."""
    if reference.shape != candidate.shape or not len(reference):
        raise ValueError(f"logits of shapes {reference.shape} and {candidate.shape}")
    for first in range(0, len(reference), ROWS):
        some = slice(first, first + ROWS)
        yield reference[some].astype(np.float64), candidate[some].astype(np.float64)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _best(logits: np.ndarray, k: int) -> np.ndarray:
    """The k best ids at each position, in no order."""
    if k == 1:
        return logits.argmax(-1)[:, None]
    return np.argpartition(-logits, k - 1, axis=-1)[:, :k]


def _ratio(value: float, scale: float) -> float:
    if scale == 0:
        return 0.0 if value == 0 else float("inf")
    return value / scale
