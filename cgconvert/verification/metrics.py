"""How far the logits of an artefact (the candidate) are from a reference's.

A Distribution keeps the TOP largest of the 51,200 logits of a position and the log-sum-exp of all
others, which is enough for every measure here.

The candidate's logits are whole, [positions, vocab_size]; of the reference's there is what a
Distribution keeps. Only logits that the tokenizer has an id for count, never the rows that pad the
vocabulary. All is computed in float64. NaN logits give NaN measures, for which every
`value <= bound` is False.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from cgconvert.lazy import torch

__all__ = [
    "TOP", "Distribution", "LogitComparison", "first_difference", "log_sum_exp", "measure",
    "relative_error",
]  # fmt: skip

POSITIONS_PER_CHUNK = 64
"""Positions compared at once: 26 MB for each float64 array at CodeGen's vocabulary."""

SURE = 2 / 3
"""The probability from which on the reference is sure of an id: twice that of any other id."""


@dataclass(frozen=True)
class LogitComparison:
    """Measures of a candidate's logits against a reference's, over N positions.

    "Kept" are the ids whose logits the reference's Distribution keeps.

    Attributes:
        kl: float64 [N], KL(reference || candidate) in nats at every position: sum_i p_i (ln p_i -
            ln q_i), as in llama.cpp's tools/perplexity (--kl-divergence). All ids that are not kept
            count as a single one; by the log-sum inequality that gives at most the whole sum, and
            the same if all are kept.
        relative_error: max |logit difference| / max |reference logit|, over the ids kept.
        nmse: Sum of squared logit differences over the sum of squared reference logits, over the
            ids kept (llama.cpp, tests/test-backend-ops.cpp).
        max_difference: max |logit difference| in logit units, over the ids kept.
        top1: Share of positions at which both have the same best id, the lowest id of equal logits
            ("Same top p" of tools/perplexity).
        top5: Mean share of the reference's best five ids that are among the candidate's best five.
        sure_positions: Number of positions at which the reference gives an id p >= 2/3.
        top1_sure: `top1` over these positions, None if there are none.
        perplexity_ratio: The candidate's perplexity over the reference's: exp(mean d), d being the
            difference of the negative log-likelihoods of each next id. None for fewer than two
            next ids.
        perplexity_error: The standard error of that ratio, ratio * std(d) / sqrt(n), as
            "Mean PPL(Q)/PPL(base)" of tools/perplexity, whose covariance term makes it the variance
            of the paired difference.
    """

    kl: np.ndarray
    relative_error: float
    nmse: float
    max_difference: float
    top1: float
    top5: float
    sure_positions: int
    top1_sure: float | None
    perplexity_ratio: float | None
    perplexity_error: float | None

    @property
    def kl_mean(self) -> float:
        """The mean KL divergence, nats."""
        return float(self.kl.mean())

    @property
    def kl_p99(self) -> float:
        """The 99th percentile of the KL divergence, nats."""
        return float(np.percentile(self.kl, 99))


def measure(reference: Distribution, candidate: np.ndarray) -> LogitComparison:
    """Compare a candidate's logits with a reference's at the same N positions.

    Args:
        reference: The reference's distributions at N positions.
        candidate: float32 [N, at least reference.tokenizer_size].

    Raises:
        ValueError: The number of positions differs, or there are fewer logits than ids.
    """
    if len(candidate) != len(reference) or candidate.shape[1] < reference.tokenizer_size:
        raise ValueError(f"logits {candidate.shape} for {len(reference)} positions")
    with np.errstate(invalid="ignore"):  # infinite logits become NaN, and so fail every check
        chunks = [_compare(*chunk) for chunk in _chunks(reference, candidate)]
    kl, squared_error, power, largest, agreement, lost_nats = (
        np.concatenate([chunk[i] for chunk in chunks]) for i in range(6)
    )
    is_sure = reference.logits[:, 0] >= reference.log_normalizer + np.log(SURE)
    max_difference = float(np.max(largest))
    ratio, ratio_error = _perplexity_ratio(lost_nats[reference.next_ids >= 0])
    return LogitComparison(
        kl=kl,
        relative_error=_ratio(max_difference, float(np.abs(reference.logits).max())),
        nmse=_ratio(float(squared_error.sum()), float(power.sum())),
        max_difference=max_difference,
        top1=float(agreement[:, 0].mean()),
        top5=float(agreement[:, 1].mean()),
        sure_positions=int(is_sure.sum()),
        top1_sure=float(agreement[is_sure, 0].mean()) if is_sure.any() else None,
        perplexity_ratio=ratio,
        perplexity_error=ratio_error,
    )


def relative_error(reference: np.ndarray, candidate: np.ndarray) -> float:
    """max |candidate - reference| / max |reference| of two arrays of logits of the same shape."""
    if reference.shape != candidate.shape or not len(reference):
        raise ValueError(f"logits of shapes {reference.shape} and {candidate.shape}")
    with np.errstate(invalid="ignore"):
        max_difference = max(
            float(np.max(np.abs(row.astype(np.float64) - reference_row)))
            for reference_row, row in zip(reference, candidate, strict=True)
        )
    return _ratio(max_difference, float(np.abs(reference).max()))


def first_difference(left: Sequence[object], right: Sequence[object]) -> int:
    """Return the first index at which two sequences differ.

    If one begins with the whole of the other, it is the length of the shorter one.
    """
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))


def _compare(reference: Distribution, candidate: np.ndarray) -> tuple[np.ndarray, ...]:
    """Compute the measures of each position, in the order in which `measure` unpacks them.

    They are: KL divergence (nats), sum of squared differences, sum of squared reference logits,
    largest difference, agreement of the best and of the best five ids [N, 2], and by how many nats
    the next id became less likely.
    """
    logits = candidate[:, : reference.tokenizer_size].astype(np.float64)
    reference_kept = reference.logits.astype(np.float64)
    kept = np.take_along_axis(logits, reference.ids, 1)
    log_p = np.column_stack((reference_kept, reference.rest)) - reference.log_normalizer[:, None]
    not_kept = logits.copy()
    np.put_along_axis(not_kept, reference.ids.astype(np.int64), -np.inf, 1)
    rest = log_sum_exp(not_kept)
    log_normalizer = np.logaddexp(log_sum_exp(kept), rest)
    log_q = np.column_stack((kept, rest)) - log_normalizer[:, None]
    p = np.exp(log_p)
    # 0 ln 0 is 0. If only one of the two has logits that are not kept, the difference stays
    # infinite or NaN.
    is_zero = (p == 0) & ~np.isnan(log_q)
    kl = np.where(is_zero, 0, p * (log_p - np.where(is_zero, 0, log_q))).sum(-1)
    difference = kept - reference_kept
    next_ids = np.maximum(reference.next_ids, 0)
    next_log_q = logits[np.arange(len(logits)), next_ids] - log_normalizer
    lost_nats = (reference.next_logits - reference.log_normalizer) - next_log_q
    agreement = np.column_stack([_agreement(reference.ids[:, :k], logits) for k in (1, 5)])
    return (
        kl,
        np.square(difference).sum(-1),
        np.square(reference_kept).sum(-1),
        np.abs(difference).max(-1),
        agreement,
        lost_nats,
    )


def _agreement(reference_best: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The share of the reference's k best ids, [N, k], that are among the k best of `logits`."""
    k = reference_best.shape[1]
    best = logits.argmax(-1)[:, None] if k == 1 else np.argpartition(-logits, k - 1)[:, :k]
    share: np.ndarray = (reference_best[:, :, None] == best[:, None, :]).any(-1).mean(-1)
    return share


def _perplexity_ratio(lost_nats: np.ndarray) -> tuple[float | None, float | None]:
    """The perplexity ratio and its standard error, from the nats that each next id lost."""
    if len(lost_nats) < 2:
        return None, None
    ratio = float(np.exp(lost_nats.mean()))
    return ratio, ratio * float(lost_nats.std(ddof=1)) / len(lost_nats) ** 0.5


def _chunks(
    reference: Distribution, candidate: np.ndarray
) -> Iterator[tuple[Distribution, np.ndarray]]:
    """Cut both into POSITIONS_PER_CHUNK positions, to bound the memory of the float64 arrays."""
    for start in range(0, len(reference), POSITIONS_PER_CHUNK):
        chunk = slice(start, start + POSITIONS_PER_CHUNK)
        yield reference[chunk], candidate[chunk]


def _ratio(value: float, scale: float) -> float:
    """value / scale, but 0 for 0 / 0 and infinity for all else over 0."""
    if scale == 0:
        return 0.0 if value == 0 else float("inf")
    return value / scale


TOP = 512
"""How many logits are kept at each position; with their ids they take 4 KB."""


@dataclass(frozen=True)
class Distribution:
    """The next-token distributions at N positions, over the ids that the tokenizer has.

    Attributes:
        ids: int32 [N, k], the ids of the k largest logits, in descending order of their logits;
            ids of equal logits are in ascending order.
        logits: float32 [N, k], the logits of `ids`.
        rest: float64 [N], the log-sum-exp of the tokenizer's other logits; -inf if there are none.
        next_ids: int32 [N], the id that follows in the text; -1 if none does, or one that the
            tokenizer does not have.
        next_logits: float32 [N], the logit of that id, NaN if there is none.
        padding_logits: float32 [N], the largest logit of the padding rows, those from
            `tokenizer_size` on; -inf if there are none.
        tokenizer_size: The number of ids that the tokenizer has.
        vocab_size: The number of logits at each position, padded rows included.
    """

    ids: np.ndarray
    logits: np.ndarray
    rest: np.ndarray
    next_ids: np.ndarray
    next_logits: np.ndarray
    padding_logits: np.ndarray
    tokenizer_size: int
    vocab_size: int

    def __len__(self) -> int:
        """The number of positions."""
        return len(self.ids)

    def __getitem__(self, positions: slice) -> Distribution:
        """The distributions at some of the positions."""
        arrays = {name: getattr(self, name)[positions] for name in ARRAYS}
        return Distribution(
            **arrays, tokenizer_size=self.tokenizer_size, vocab_size=self.vocab_size
        )

    @property
    def log_normalizer(self) -> np.ndarray:
        """The log-sum-exp of all logits that the tokenizer has an id for, float64 [N]."""
        with np.errstate(invalid="ignore"):  # infinite logits become NaN, and so fail every check
            log_sum: np.ndarray = np.logaddexp(
                log_sum_exp(self.logits.astype(np.float64)), self.rest
            )
        return log_sum

    @property
    def margins(self) -> np.ndarray:
        """The largest logit less the second largest at each position, float32 [N].

        The margin is infinite if only one logit is kept.
        """
        if self.logits.shape[1] < 2:
            return np.full(len(self), np.inf, dtype=np.float32)
        margins: np.ndarray = self.logits[:, 0] - self.logits[:, 1]
        return margins

    @classmethod
    def of(
        cls, logits: np.ndarray, next_ids: npt.ArrayLike, tokenizer_size: int, top: int = TOP
    ) -> Distribution:
        """Reduce logits to the `top` largest of each position and the log-sum-exp of the others.

        Args:
            logits: float32 [N, vocab_size].
            next_ids: [N], the id that follows each position in the text; -1 for none.
            tokenizer_size: The number of ids that the tokenizer has.
            top: How many logits to keep.
        """
        unpadded = torch.from_numpy(logits[:, :tokenizer_size])
        ids = unpadded.topk(min(top, unpadded.shape[1]), dim=1).indices.sort(dim=1).values
        order = unpadded.gather(1, ids).sort(dim=1, descending=True, stable=True).indices
        ids = ids.gather(1, order)
        rest = unpadded.double().scatter(1, ids, -torch.inf)
        following = np.asarray(next_ids, dtype=np.int32)
        has_next = (following >= 0) & (following < unpadded.shape[1])
        next_logits = logits[np.arange(len(logits)), np.where(has_next, following, 0)]
        return cls(
            ids=ids.numpy().astype(np.int32),
            logits=unpadded.gather(1, ids).numpy(),
            rest=rest.logsumexp(1).numpy(),
            next_ids=np.where(has_next, following, -1).astype(np.int32),
            next_logits=np.where(has_next, next_logits, np.nan).astype(np.float32),
            padding_logits=logits[:, tokenizer_size:].max(1, initial=-np.inf).astype(np.float32),
            tokenizer_size=tokenizer_size,
            vocab_size=logits.shape[1],
        )

    @classmethod
    def joined(cls, parts: Sequence[Distribution]) -> Distribution:
        """Concatenate the positions of several distributions of one model."""
        arrays = {name: np.concatenate([getattr(p, name) for p in parts]) for name in ARRAYS}
        return cls(**arrays, tokenizer_size=parts[0].tokenizer_size, vocab_size=parts[0].vocab_size)


ARRAYS = tuple(
    f.name for f in fields(Distribution) if f.name not in ("tokenizer_size", "vocab_size")
)
"""The fields of a Distribution that have one entry for each position."""


def log_sum_exp(logits: np.ndarray) -> np.ndarray:
    """log(sum(exp(logits))) over the last axis of float64 logits; -inf if that axis is empty."""
    top = logits.max(-1, initial=-np.inf)
    base = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        total: np.ndarray = np.log(np.exp(logits - base[..., None]).sum(-1)) + base
    return total
