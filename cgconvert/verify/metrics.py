"""How far a candidate's logits are from a reference's.

The candidate's are whole, [positions, rows]; of the reference there is what a Distribution keeps.
Only ids the tokenizer has count, never the rows that pad the vocabulary. Work is done in float64,
some positions at a time. NaN in, NaN out: who then asks `value <= bound` gets False.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cgconvert.verify.distribution import Distribution, log_sum_exp

__all__ = ["Loss", "measure", "relative_error"]

ROWS = 64
"""Positions in float64 at once: 26 MB an array at CodeGen's vocabulary."""

SURE = 2 / 3
"""Probability from which the reference is sure of a token: twice as likely as any other."""


@dataclass(frozen=True)
class Loss:
    """All measures over all positions.

    `kl` float64 [N] is KL(reference || candidate) in nats at every position: sum_i p_i (ln p_i -
    ln q_i), as llama.cpp's tools/perplexity has it (--kl-divergence), all ids that the reference's
    Distribution does not keep taken for one. By the log-sum inequality that is never more than the
    whole sum, and the same where all are kept.

    `noise` is max |logit difference| in logit units, `relative_error` that over max |reference|,
    `nmse` the sum of squared differences over the sum of squares (llama.cpp,
    tests/test-backend-ops.cpp): all three over the reference's best ids.

    `top1` and `top5` are the mean share of the reference's best ids that are among the candidate's
    (for one, "Same top p" of tools/perplexity), equal logits going to the lowest id. `top1_sure` is
    top1 over the `sure` positions at which the reference gives a token p >= 2/3, None without any.

    `perplexity_ratio` is the candidate's perplexity over the reference's: exp(mean d), d being the
    difference of the negative log-likelihoods of each next token; `perplexity_error` is its
    standard error, ratio * std(d) / sqrt(n). As "Mean PPL(Q)/PPL(base)" of tools/perplexity, whose
    covariance term makes it the variance of the paired difference. None for under two tokens.
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
        return float(self.kl.mean())

    @property
    def kl_p99(self) -> float:
        return float(np.percentile(self.kl, 99))


def measure(reference: Distribution, candidate: np.ndarray) -> Loss:
    """Compare logits float32 [N, at least reference.allowed] with a reference's N positions.

    Raises ValueError where the positions or ids are fewer than the reference's.
    """
    if len(candidate) != len(reference) or candidate.shape[1] < reference.allowed:
        raise ValueError(f"logits {candidate.shape} for {len(reference)} positions")
    with np.errstate(invalid="ignore"):  # infinite logits become NaN, which is how they show
        parts = [_compare(*pair) for pair in _rows(reference, candidate)]
    kl, difference, power, largest, agree, worse = (
        np.concatenate([part[i] for part in parts]) for i in range(6)
    )
    sure = reference.logits[:, 0] >= reference.log_normalizer + np.log(SURE)
    noise = float(np.max(largest))
    ratio, error = _perplexity(worse[reference.tokens >= 0])
    return Loss(
        kl=kl,
        relative_error=_ratio(noise, float(np.abs(reference.logits).max())),
        nmse=_ratio(float(difference.sum()), float(power.sum())),
        noise=noise,
        top1=float(agree[:, 0].mean()),
        top5=float(agree[:, 1].mean()),
        sure=int(sure.sum()),
        top1_sure=float(agree[sure, 0].mean()) if sure.any() else None,
        perplexity_ratio=ratio,
        perplexity_error=error,
    )


def relative_error(reference: np.ndarray, candidate: np.ndarray) -> float:
    """max |candidate - reference| / max |reference| of two arrays of logits."""
    if reference.shape != candidate.shape or not len(reference):
        raise ValueError(f"logits of shapes {reference.shape} and {candidate.shape}")
    with np.errstate(invalid="ignore"):
        noise = max(
            float(np.max(np.abs(other.astype(np.float64) - base)))
            for base, other in zip(reference, candidate, strict=True)
        )
    return _ratio(noise, float(np.abs(reference).max()))


def _compare(base: Distribution, candidate: np.ndarray) -> tuple[np.ndarray, ...]:
    """For each position: KL, sum of squares of the difference and of the reference, the largest
    difference, agreement of the best and the best five, and what the next token lost (nats)."""
    other = candidate[:, : base.allowed].astype(np.float64)
    best = base.logits.astype(np.float64)
    same = np.take_along_axis(other, base.ids, 1)
    log_p = np.column_stack((best, base.rest)) - base.log_normalizer[:, None]
    left_out = other.copy()
    np.put_along_axis(left_out, base.ids.astype(np.int64), -np.inf, 1)
    rest = log_sum_exp(left_out)
    normalizer = np.logaddexp(log_sum_exp(same), rest)
    log_q = np.column_stack((same, rest)) - normalizer[:, None]
    p = np.exp(log_p)
    # 0 ln 0 is 0; where only one of the two has no rest the difference stays infinite or NaN.
    nothing = (p == 0) & ~np.isnan(log_q)
    kl = np.where(nothing, 0, p * (log_p - np.where(nothing, 0, log_q))).sum(-1)
    difference = same - best
    tokens = np.maximum(base.tokens, 0)
    worse = (base.following - base.log_normalizer) - (
        other[np.arange(len(other)), tokens] - normalizer
    )
    agree = np.column_stack([_agreement(base.ids[:, :k], other) for k in (1, 5)])
    return (
        kl,
        np.square(difference).sum(-1),
        np.square(best).sum(-1),
        np.abs(difference).max(-1),
        agree,
        worse,
    )


def _agreement(best: np.ndarray, other: np.ndarray) -> np.ndarray:
    k = best.shape[1]
    found = other.argmax(-1)[:, None] if k == 1 else np.argpartition(-other, k - 1)[:, :k]
    share: np.ndarray = (best[:, :, None] == found[:, None, :]).any(-1).mean(-1)
    return share


def _perplexity(worse: np.ndarray) -> tuple[float | None, float | None]:
    if len(worse) < 2:
        return None, None
    ratio = float(np.exp(worse.mean()))
    return ratio, ratio * float(worse.std(ddof=1)) / len(worse) ** 0.5


def _rows(
    reference: Distribution, candidate: np.ndarray
) -> Iterator[tuple[Distribution, np.ndarray]]:
    for first in range(0, len(reference), ROWS):
        some = slice(first, first + ROWS)
        yield reference[some], candidate[some]


def _ratio(value: float, scale: float) -> float:
    if scale == 0:
        return 0.0 if value == 0 else float("inf")
    return value / scale
