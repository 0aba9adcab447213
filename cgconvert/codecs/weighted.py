"""A searched type for one matrix whose columns do not count alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cgconvert.codecs.encoding import Array
from cgconvert.codecs.searched import SearchedCodec

__all__ = ["Weighted"]


@dataclass(frozen=True, eq=False)
class Weighted:
    """`importance` float32 [columns] is how much a squared error counts in each column."""

    codec: SearchedCodec
    importance: torch.Tensor

    @property
    def name(self) -> str:
        return self.codec.name

    def arrays(self, shape: Sequence[int]) -> tuple[Array, ...]:
        return self.codec.arrays(shape)

    def encode(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.codec.encode(rows, self.importance.to(rows.device))
