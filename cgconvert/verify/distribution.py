"""What the reference says after each token, kept small: its best logits and the mass of the rest.

A whole row is 51,200 floats; the best TOP of them and the log-sum-exp of all others say where the
probability is, which is what every measure here asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["TOP", "Distribution", "log_sum_exp"]

TOP = 512
"""Logits kept a position, 4 KB with their ids."""


@dataclass(frozen=True)
class Distribution:
    """N positions over the `allowed` first ids, those that the tokenizer has.

    `ids` int32 [N, k] are the best, best first and the lowest id of equals before the others;
    `logits` float32 [N, k] theirs; `rest` float64 [N] is the log-sum-exp of all other allowed ones
    (-inf where there are none). `tokens` int32 [N] is the id that follows in the text, -1 where
    none does, and `following` float32 [N] its logit (NaN for none). `padding` float32 [N] is the
    best logit of the rows past `allowed` (-inf without any), `vocabulary` the number of rows.
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
        with np.errstate(invalid="ignore"):  # infinite logits give NaN, which is how they show
            return np.logaddexp(log_sum_exp(self.logits.astype(np.float64)), self.rest)

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
        """Keep `top` of float32 logits [N, vocabulary]; `tokens` [N] are the ids that follow."""
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
        """The positions of several, one after the other."""
        arrays = {name: np.concatenate([getattr(p, name) for p in parts]) for name in ARRAYS}
        return cls(**arrays, allowed=parts[0].allowed, vocabulary=parts[0].vocabulary)


ARRAYS = tuple(f.name for f in fields(Distribution) if f.name not in ("allowed", "vocabulary"))


def log_sum_exp(logits: np.ndarray) -> np.ndarray:
    """Over the last axis of float64 logits; -inf where there are none."""
    top = logits.max(-1, initial=-np.inf)
    base = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        total: np.ndarray = np.log(np.exp(logits - base[..., None]).sum(-1)) + base
    return total
