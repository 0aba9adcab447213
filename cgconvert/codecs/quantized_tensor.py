"""Quantized matrices, and encodings that quantize one matrix or copy its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.block_layout import BlockParams
from cgconvert.codecs.encoding import Array, Encoding
from cgconvert.model.tensor import ALL, LazyTensor

__all__ = ["PackedRows", "QuantizedTensor", "Weighted", "block_codec_of"]


@dataclass(frozen=True)
class QuantizedTensor(LazyTensor):
    """A matrix [rows, columns] in quantized blocks, decoded to float32 as it is read.

    A row's blocks depend on no other row, so other rows in another order are quantized too.

    Attributes:
        arrays: the arrays of `codec`, rows on the first axis: as a file stores them, or a single
            one of packed rows, uint8 [rows, bytes of a row].
        shape: the matrix's, (rows, columns).
        codec: what the bytes mean.
    """

    arrays: tuple[LazyTensor, ...]
    shape: tuple[int, ...]
    codec: BlockCodec
    dtype: torch.dtype = torch.float32

    @property
    def parents(self) -> tuple[LazyTensor, ...]:
        return self.arrays

    def params(self, rows: slice = ALL) -> BlockParams:
        """Codes, scales and minimums of the rows' blocks, one row's after the other's."""
        return self.codec.unpack_arrays([array.read(rows) for array in self.arrays])

    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        arrays = [array.read(rows) for array in self.arrays]
        shape = (len(arrays[0]), *self.shape[1:])
        return self.codec.decode(arrays, shape)[:, cols].contiguous()

    def rows(self, index: np.ndarray) -> LazyTensor:
        arrays = tuple(array.rows(index) for array in self.arrays)
        return QuantizedTensor(arrays, (len(index), *self.shape[1:]), self.codec)


@dataclass(frozen=True)
class PackedRows:
    """The encoding of packed rows: their bytes stay as they are, in the arrays of `codec`.

    `shape` is the shape of the matrix that the rows stand for.
    """

    codec: BlockCodec
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.codec.name

    def arrays(self, shape: Sequence[int]) -> tuple[Array, ...]:
        """The arrays of the matrix; `shape` is that of its bytes."""
        return self.codec.arrays(self.shape)

    def encode(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.codec.split_rows(rows)


@dataclass(frozen=True, eq=False)
class Weighted:
    """The encoding of one matrix whose columns do not count alike.

    `importance` float32 [columns] is how much a squared error counts in each column.
    """

    codec: BlockCodec
    importance: torch.Tensor

    @property
    def name(self) -> str:
        return self.codec.name

    def arrays(self, shape: Sequence[int]) -> tuple[Array, ...]:
        return self.codec.arrays(shape)

    def encode(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.codec.encode(rows, self.importance.to(rows.device))


def block_codec_of(encoding: Encoding) -> BlockCodec | None:
    """The codec of the blocks that an encoding writes; None where it writes plain numbers."""
    if isinstance(encoding, PackedRows | Weighted):
        return encoding.codec
    return encoding if isinstance(encoding, BlockCodec) else None
