"""How far a candidate's logits are from a reference's.

The candidate's logits are whole, [positions, vocabulary]; of the reference's there is what a
Distribution keeps. Only ids that the tokenizer has count, never the rows that pad the vocabulary.
All is computed in float64, POSITIONS at a time. NaN logits give NaN measures, for which every
`value <= bound` is False.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cgconvert.verify.distribution import Distribution, log_sum_exp

__all__ = ["Loss", "measure", "relative_error"]

POSITIONS = 64
"""Positions in float64 at once: 26 MB for each array at CodeGen's vocabulary."""

SURE = 2 / 3
"""Probability from which the reference is sure of a token: twice as likely as any other."""


@dataclass(frozen=True)
class Loss:
    """Measures of a candidate's logits against a reference's, over N positions.

    Attributes:
        kl: float64 [N], KL(reference || candidate) in nats at every position: sum_i p_i (ln p_i -
            ln q_i), as llama.cpp's tools/perplexity has it (--kl-divergence). All ids that the
            reference's Distribution does not keep count as a single one; by the log-sum inequality
            that gives at most the whole sum, and the same where all are kept.
        relative_error: max |logit difference| / max |reference logit|, over the ids kept.
        nmse: Sum of squared logit differences over the sum of squared reference logits, over the
            ids kept (llama.cpp, tests/test-backend-ops.cpp).
        noise: max |logit difference| in logit units, over the ids kept.
        top1: Share of positions at which both have the same best id, the lowest id of equal logits
            ("Same top p" of tools/perplexity).
        top5: Mean share of the reference's best five ids that are among the candidate's best five.
        sure: Number of positions at which the reference gives a token p >= 2/3.
        top1_sure: `top1` over these positions, None where there are none.
        perplexity_ratio: The candidate's perplexity over the reference's: exp(mean d), d being the
            difference of the negative log-likelihoods of each next token. None for under two
            tokens.
        perplexity_error: Its standard error, ratio * std(d) / sqrt(n), as "Mean PPL(Q)/PPL(base)"
            of tools/perplexity, whose covariance term makes it the variance of the paired
            difference.
    """

    kl: np.ndarray
    relative_error: float
    nmse: float
    noise: float
    top1: float
    top5: float
    sure: int
    top1_sure: float | None
    perplexity_ratio: float | None
    perplexity_error: float | None

    @property
    def kl_mean(self) -> float:
        """Mean KL divergence, nats."""
        return float(self.kl.mean())

    @property
    def kl_p99(self) -> float:
        """The 99th percentile of the KL divergence, nats."""
        return float(np.percentile(self.kl, 99))


def measure(reference: Distribution, candidate: np.ndarray) -> Loss:
    """Compare a candidate's logits, float32 [N, at least reference.allowed], with a reference's.

    Raises ValueError where the positions differ in number or the ids are fewer than `allowed`.
    """
    if len(candidate) != len(reference) or candidate.shape[1] < reference.allowed:
        raise ValueError(f"logits {candidate.shape} for {len(reference)} positions")
    with np.errstate(invalid="ignore"):  # infinite logits become NaN, and so fail every check
        parts = [_compare(*pair) for pair in _pieces(reference, candidate)]
    kl, squared_error, power, largest, agreement, lost = (
        np.concatenate([part[i] for part in parts]) for i in range(6)
    )
    sure = reference.logits[:, 0] >= reference.log_normalizer + np.log(SURE)
    noise = float(np.max(largest))
    ratio, error = _perplexity_ratio(lost[reference.tokens >= 0])
    return Loss(
        kl=kl,
        relative_error=_ratio(noise, float(np.abs(reference.logits).max())),
        nmse=_ratio(float(squared_error.sum()), float(power.sum())),
        noise=noise,
        top1=float(agreement[:, 0].mean()),
        top5=float(agreement[:, 1].mean()),
        sure=int(sure.sum()),
        top1_sure=float(agreement[sure, 0].mean()) if sure.any() else None,
        perplexity_ratio=ratio,
        perplexity_error=error,
    )


def relative_error(reference: np.ndarray, candidate: np.ndarray) -> float:
    """max |candidate - reference| / max |reference| of two arrays of logits."""
    if reference.shape != candidate.shape or not len(reference):
        raise ValueError(f"logits of shapes {reference.shape} and {candidate.shape}")
    with np.errstate(invalid="ignore"):
        noise = max(
            float(np.max(np.abs(row.astype(np.float64) - reference_row)))
            for reference_row, row in zip(reference, candidate, strict=True)
        )
    return _ratio(noise, float(np.abs(reference).max()))


def _compare(reference: Distribution, candidate: np.ndarray) -> tuple[np.ndarray, ...]:
    """Measures of each position, in the order in which `measure` unpacks them.

    They are: KL, sum of squared differences, sum of squared reference logits, largest difference,
    agreement of the best and of the best five ids, and what the next token lost (nats).
    """
    logits = candidate[:, : reference.allowed].astype(np.float64)
    reference_kept = reference.logits.astype(np.float64)
    kept = np.take_along_axis(logits, reference.ids, 1)
    log_p = np.column_stack((reference_kept, reference.rest)) - reference.log_normalizer[:, None]
    others = logits.copy()
    np.put_along_axis(others, reference.ids.astype(np.int64), -np.inf, 1)
    rest = log_sum_exp(others)
    log_normalizer = np.logaddexp(log_sum_exp(kept), rest)
    log_q = np.column_stack((kept, rest)) - log_normalizer[:, None]
    p = np.exp(log_p)
    # 0 ln 0 is 0; where only one of the two has no rest the difference stays infinite or NaN.
    zero = (p == 0) & ~np.isnan(log_q)
    kl = np.where(zero, 0, p * (log_p - np.where(zero, 0, log_q))).sum(-1)
    difference = kept - reference_kept
    next_ids = np.maximum(reference.tokens, 0)
    next_log_q = logits[np.arange(len(logits)), next_ids] - log_normalizer
    lost = (reference.following - reference.log_normalizer) - next_log_q
    agreement = np.column_stack([_agreement(reference.ids[:, :k], logits) for k in (1, 5)])
    return (
        kl,
        np.square(difference).sum(-1),
        np.square(reference_kept).sum(-1),
        np.abs(difference).max(-1),
        agreement,
        lost,
    )


def _agreement(reference_best: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Share of the reference's best ids, [N, k], that are among the k best of `logits`."""
    k = reference_best.shape[1]
    best = logits.argmax(-1)[:, None] if k == 1 else np.argpartition(-logits, k - 1)[:, :k]
    share: np.ndarray = (reference_best[:, :, None] == best[:, None, :]).any(-1).mean(-1)
    return share


def _perplexity_ratio(lost: np.ndarray) -> tuple[float | None, float | None]:
    """The ratio and its standard error, of the nats that each next token lost."""
    if len(lost) < 2:
        return None, None
    ratio = float(np.exp(lost.mean()))
    return ratio, ratio * float(lost.std(ddof=1)) / len(lost) ** 0.5


def _pieces(
    reference: Distribution, candidate: np.ndarray
) -> Iterator[tuple[Distribution, np.ndarray]]:
    for start in range(0, len(reference), POSITIONS):
        piece = slice(start, start + POSITIONS)
        yield reference[piece], candidate[piece]


def _ratio(value: float, scale: float) -> float:
    """value / scale; 0 / 0 is 0."""
    if scale == 0:
        return 0.0 if value == 0 else float("inf")
    return value / scale
