"""Matrices in quantized blocks, and encodings that quantize a matrix or copy blocks of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.block_layout import BlockParams
from cgconvert.codecs.encoding import Array, Encoding
from cgconvert.lazy import torch
from cgconvert.model.dtype import FLOAT32, DType
from cgconvert.model.tensor import ALL, LazyTensor

__all__ = ["ImportanceEncoding", "PackedRowsEncoding", "QuantizedTensor", "block_codec_of"]


@dataclass(frozen=True)
class QuantizedTensor(LazyTensor):
    """A matrix [rows, columns] in quantized blocks, which reading decodes to float32.

    The blocks of a row do not depend on other rows, so selected or reordered rows are again a
    QuantizedTensor.

    Attributes:
        arrays: the arrays that `codec` stores in a file, rows on the first axis; or a single array
            of packed rows, uint8 [rows, bytes of a row].
        shape: the shape of the matrix, (rows, columns).
        codec: the codec that decodes the arrays.
        dtype: the type of the decoded weights.
    """

    arrays: tuple[LazyTensor, ...]
    shape: tuple[int, ...]
    codec: BlockCodec
    dtype: DType = FLOAT32

    @property
    def parents(self) -> tuple[LazyTensor, ...]:
        return self.arrays

    def params(self, rows: slice = ALL) -> BlockParams:
        """Read the parameters of the blocks of some rows, row after row."""
        return self.codec.unpack_arrays([array.read(rows) for array in self.arrays])

    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        arrays = [array.read(rows) for array in self.arrays]
        shape = (len(arrays[0]), *self.shape[1:])
        return self.codec.decode(arrays, shape)[:, cols].contiguous()

    def rows(self, index: np.ndarray) -> LazyTensor:
        arrays = tuple(array.rows(index) for array in self.arrays)
        return QuantizedTensor(arrays, (len(index), *self.shape[1:]), self.codec)


@dataclass(frozen=True)
class PackedRowsEncoding:
    """The encoding of rows that are packed blocks already: no block is quantized again.

    Attributes:
        codec: the codec of the blocks. It distributes their bytes over the arrays of a file.
        shape: the shape of the decoded matrix, (rows, columns).
    """

    codec: BlockCodec
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.codec.name

    def arrays(self, shape: Sequence[int]) -> tuple[Array, ...]:
        """List the arrays of the matrix; `shape`, which is that of the packed rows, is not used."""
        return self.codec.arrays(self.shape)

    def encode(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.codec.split_rows(rows)


@dataclass(frozen=True, eq=False)
class ImportanceEncoding:
    """The encoding of one matrix in blocks, with an importance for each column.

    Attributes:
        codec: the codec of the blocks.
        importance: how much a squared error counts in each column, float32 [columns].
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
    """Return the codec of the blocks that an encoding writes; None if it writes no blocks."""
    if isinstance(encoding, PackedRowsEncoding | ImportanceEncoding):
        return encoding.codec
    return encoding if isinstance(encoding, BlockCodec) else None
