"""A reference's next-token distributions, kept small: the best logits and the mass of the rest.

A whole row has 51,200 floats. The best TOP of them and the log-sum-exp of all others are enough for
every measure in metrics.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["TOP", "Distribution", "log_sum_exp"]

TOP = 512
"""Logits kept at each position, 4 KB with their ids."""


@dataclass(frozen=True)
class Distribution:
    """Distributions at N positions, over the ids that the tokenizer has.

    Attributes:
        ids: int32 [N, k], the ids of the largest logits, the largest first and the lowest id first
            of equal ones.
        logits: float32 [N, k], their logits.
        rest: float64 [N], the log-sum-exp of all other allowed logits, -inf where there are none.
        tokens: int32 [N], the id that follows in the text, -1 where none does.
        following: float32 [N], the logit of that id, NaN where there is none.
        padding: float32 [N], the largest logit of the rows past `allowed`, -inf without any.
        allowed: The number of ids that the tokenizer has.
        vocabulary: The number of rows of logits.
    """

    ids: np.ndarray
    logits: np.ndarray
    rest: np.ndarray
    tokens: np.ndarray
    following: np.ndarray
    padding: np.ndarray
    allowed: int
    vocabulary: int

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, positions: slice) -> Distribution:
        arrays = {name: getattr(self, name)[positions] for name in ARRAYS}
        return Distribution(**arrays, allowed=self.allowed, vocabulary=self.vocabulary)

    @property
    def log_normalizer(self) -> np.ndarray:
        """log-sum-exp of all allowed logits, float64 [N]."""
        with np.errstate(invalid="ignore"):  # infinite logits become NaN, and so fail every check
            log_sum: np.ndarray = np.logaddexp(
                log_sum_exp(self.logits.astype(np.float64)), self.rest
            )
        return log_sum

    @property
    def margins(self) -> np.ndarray:
        """How far the second best lies below the best, float32 [N]; infinite without a second."""
        if self.logits.shape[1] < 2:
            return np.full(len(self), np.inf, dtype=np.float32)
        margins: np.ndarray = self.logits[:, 0] - self.logits[:, 1]
        return margins

    @classmethod
    def of(
        cls, logits: np.ndarray, tokens: npt.ArrayLike, allowed: int, top: int = TOP
    ) -> Distribution:
        """Keep the `top` largest of float32 logits [N, vocabulary]; `tokens` [N] follow them."""
        real = torch.from_numpy(logits[:, :allowed])
        ids = real.topk(min(top, real.shape[1]), dim=1).indices.sort(dim=1).values
        order = real.gather(1, ids).sort(dim=1, descending=True, stable=True).indices
        ids = ids.gather(1, order)
        rest = real.double().scatter(1, ids, -torch.inf)
        following = np.asarray(tokens, dtype=np.int32)
        known = (following >= 0) & (following < real.shape[1])
        value = logits[np.arange(len(logits)), np.where(known, following, 0)]
        padded = logits[:, allowed:]
        return cls(
            ids=ids.numpy().astype(np.int32),
            logits=real.gather(1, ids).numpy(),
            rest=rest.logsumexp(1).numpy(),
            tokens=np.where(known, following, -1).astype(np.int32),
            following=np.where(known, value, np.nan).astype(np.float32),
            padding=padded.max(1, initial=-np.inf).astype(np.float32),
            allowed=allowed,
            vocabulary=logits.shape[1],
        )

    @classmethod
    def joined(cls, parts: Sequence[Distribution]) -> Distribution:
        """The positions of several distributions, one after the other."""
        arrays = {name: np.concatenate([getattr(p, name) for p in parts]) for name in ARRAYS}
        return cls(**arrays, allowed=parts[0].allowed, vocabulary=parts[0].vocabulary)


ARRAYS = tuple(f.name for f in fields(Distribution) if f.name not in ("allowed", "vocabulary"))


def log_sum_exp(logits: np.ndarray) -> np.ndarray:
    """log(sum(exp)) over the last axis of float64 logits; -inf where there are none."""
    top = logits.max(-1, initial=-np.inf)
    base = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        total: np.ndarray = np.log(np.exp(logits - base[..., None]).sum(-1)) + base
    return total
