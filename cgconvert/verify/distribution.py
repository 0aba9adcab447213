"""The next-token distributions of a reference, reduced to the largest logits and a sum.

The logits of one position are 51,200 floats. The TOP largest of them and the log-sum-exp of all
others are enough for every measure in metrics.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["TOP", "Distribution", "log_sum_exp"]

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
        next_ids: int32 [N], the id that follows in the text, -1 if none does.
        next_logits: float32 [N], the logit of that id, NaN if there is none.
        padding_logits: float32 [N], the largest logit of the padded rows, those from
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
