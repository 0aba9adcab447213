"""Encodings: how rows of numbers become bytes in a file. Here are the unquantized ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

__all__ = ["BF16", "F16", "F32", "Array", "Encoding", "Plain"]


@dataclass(frozen=True)
class Array:
    """One array that an encoding stores for a tensor.

    `suffix` is added to the tensor's name, `shape` is the stored shape with the tensor's rows on
    the first axis or flattened into it, `row_bytes` the bytes of one of the tensor's rows.
    """

    suffix: str
    shape: tuple[int, ...]
    dtype: str
    row_bytes: int


class Encoding(Protocol):
    """Turns rows of numbers into bytes.

    Rows are independent of one another, so the bytes are the same however rows are chunked.
    """

    @property
    def name(self) -> str:
        """The name that plans and manifests record."""
        ...

    def arrays(self, shape: Sequence[int]) -> tuple[Array, ...]:
        """The arrays for a tensor of this shape. Raises InputError where it does not fit."""
        ...

    def encode(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One contiguous tensor for each array, of rows [n, ...] of any floating type."""
        ...


@dataclass(frozen=True)
class Plain:
    """Numbers stored one by one, rounded to nearest even where `dtype` is narrower."""

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
