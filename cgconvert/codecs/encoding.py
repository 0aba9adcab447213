"""Encodings: how rows of numbers become bytes in a file. This module has the unquantized ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cgconvert.lazy import torch
from cgconvert.model.dtype import BFLOAT16, FLOAT16, FLOAT32, DType

__all__ = ["BF16", "F16", "F32", "Array", "Encoding", "FloatEncoding"]


@dataclass(frozen=True)
class Array:
    """One of the arrays that an encoding stores for a tensor.

    Attributes:
        suffix: what is added to the tensor's name.
        shape: the stored shape. Its first axis is the tensor's rows, or contains them.
        dtype: the name of the stored type.
        row_bytes: the bytes that one row of the tensor takes in this array.
    """

    suffix: str
    shape: tuple[int, ...]
    dtype: str
    row_bytes: int


class Encoding(Protocol):
    """An encoding turns rows of numbers into bytes.

    Each row is encoded independently, so the bytes do not depend on how rows are grouped into
    calls.
    """

    @property
    def name(self) -> str:
        """The name that plans and manifests record."""
        ...

    def arrays(self, shape: Sequence[int]) -> tuple[Array, ...]:
        """List the arrays of a tensor of this shape.

        Raises InputError if a tensor of this shape cannot have this encoding.
        """
        ...

    def encode(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Encode rows [n, ...] of any floating type into one contiguous tensor for each array."""
        ...


@dataclass(frozen=True)
class FloatEncoding:
    """The encoding of unquantized numbers, rounded to the floating type `dtype` (nearest even)."""

    name: str
    dtype: DType

    def arrays(self, shape: Sequence[int]) -> tuple[Array, ...]:
        row_bytes = math.prod(shape[1:]) * self.dtype.itemsize
        return (Array("", tuple(shape), self.name, row_bytes),)

    def encode(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (rows.to(self.dtype.torch_dtype).contiguous(),)


F32 = FloatEncoding("F32", FLOAT32)
F16 = FloatEncoding("F16", FLOAT16)
BF16 = FloatEncoding("BF16", BFLOAT16)
