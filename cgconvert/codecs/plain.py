"""The unquantized encodings: float32, float16, bfloat16 (rounded to nearest even)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cgconvert.codecs.encoding import Array

__all__ = ["BF16", "F16", "F32", "Plain"]


@dataclass(frozen=True)
class Plain:
    """Numbers stored one by one."""

    name: str
    dtype: torch.dtype

    def arrays(self, shape: Sequence[int]) -> tuple[Array, ...]:
        row_bytes = math.prod(shape[1:]) * self.dtype.itemsize
        return (Array("", tuple(shape), self.name, row_bytes),)

    def encode(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (rows.to(self.dtype).contiguous(),)


F32 = Plain("F32", torch.float32)
F16 = Plain("F16", torch.float16)
BF16 = Plain("BF16", torch.bfloat16)
