"""A matrix that is quantized already: its bytes, and its numbers as they decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.encoding import Array
from cgconvert.codecs.parts import Parts
from cgconvert.model.tensor import ALL, LazyTensor

__all__ = ["AsCoded", "Coded"]


@dataclass(frozen=True)
class Coded(LazyTensor):
    """Rows of blocks, uint8 [rows, bytes of a row], read as float32 [rows, columns].

    A row's blocks depend on no other row, so other rows in another order are coded too.
    """

    stored: LazyTensor
    shape: tuple[int, ...]
    codec: BlockCodec
    dtype: torch.dtype = torch.float32

    @property
    def parents(self) -> tuple[LazyTensor, ...]:
        return (self.stored,)

    @property
    def bits(self) -> int:
        """Of a code."""
        return self.codec.top.bit_length()

    def parts(self, rows: slice = ALL) -> Parts:
        """Codes, scales and minimums of the rows' blocks, one row's after the other's."""
        return self.codec.unpack(self.stored.read(rows).reshape(-1, self.codec.block_bytes))

    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        coded = self.stored.read(rows)
        return self.codec.decode(coded, (len(coded), *self.shape[1:]))[:, cols].contiguous()

    def rows(self, index: np.ndarray) -> LazyTensor:
        return Coded(self.stored.rows(index), (len(index), *self.shape[1:]), self.codec)


@dataclass(frozen=True)
class AsCoded:
    """The encoding of a Coded tensor's bytes: they stay as they are."""

    codec: BlockCodec
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.codec.name

    def arrays(self, shape: Sequence[int]) -> tuple[Array, ...]:
        """One array of the matrix's shape, for bytes of any."""
        return self.codec.arrays(self.shape)

    def encode(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (rows,)
