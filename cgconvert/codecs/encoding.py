"""What an encoding is: how rows of numbers become bytes in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

__all__ = ["Array", "Encoding"]


@dataclass(frozen=True)
class Array:
    """One array an encoding stores for a tensor.

    `suffix` is added to the tensor's name, `shape` is the stored shape with the tensor's rows on
    the first axis or flattened into it, `row_bytes` the bytes of one of the tensor's rows.
    """

    suffix: str
    shape: tuple[int, ...]
    dtype: str
    row_bytes: int


class Encoding(Protocol):
    """Rows in, bytes out. Rows are independent of one another, so any chunking is the same."""

    @property
    def name(self) -> str:
        """What plans and manifests call it."""
        ...

    def arrays(self, shape: Sequence[int]) -> tuple[Array, ...]:
        """The arrays for a tensor of this shape. Raises InputError where it does not fit."""
        ...

    def encode(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Contiguous tensors, one an array, for rows [n, ...] of any floating type."""
        ...
