"""ONNX Runtime's block quantization: MatMulNBits for matrices, GatherBlockQuantized for tables.

Format: docs/ContribOperators.md of onnxruntime. A row is cut into blocks of `block_size` weights;
weight = scale * (code - zero_point). Codes of 4 bits lie two in a byte, the first in the low
nibble, and so do the zero points of a row. Without zero points the operators take 2^(bits - 1).

The operators read codes, scales and zero points as separate arrays. Between calibration and the
writer a block is bytes in one piece instead: its float16 scale, its zero point where there is one,
and its codes. Rows of such bytes can be cut, reordered and stacked like rows of numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from cgconvert.codecs.block_codec import TILE, BlockCodec
from cgconvert.codecs.block_layout import BlockParams, blocks_first, float16_columns
from cgconvert.codecs.encoding import Array
from cgconvert.codecs.ggml.blocks_of_32 import SIGNED_4_BITS
from cgconvert.codecs.search.rounding import (
    AbsMaxRounding,
    ExtremeRounding,
    MinMaxRounding,
    Rounding,
)
from cgconvert.codecs.search.strategy import Search
from cgconvert.codecs.search.zero_point import ZeroPointSearch
from cgconvert.errors import InputError, UsageError

__all__ = ["BLOCK_SIZES", "MatMulNBits"]

BLOCK_SIZES = (16, 32, 64, 128, 256)
"""What onnxruntime has CPU kernels for (mlas/lib/qnbitgemm.cpp); it computes others slowly."""


@dataclass(frozen=True)
class MatMulNBits(BlockCodec):
    """Weights [N, K] as codes, float16 scales and, where asymmetric, zero points.

    Symmetric blocks are rounded as GGUF's Q4_0 and Q8_0, so that a model gets the same numbers in
    both formats.

    Attributes:
        bits: 4 or 8.
        block_size: weights that share a scale.
        symmetric: whether there are no zero points.
        table: whether the codes of a row stay together, [N, K * bits / 8], as GatherBlockQuantized
            wants them; MatMulNBits has them as [N, blocks, block_size * bits / 8]. The bytes are
            the same.
        searched: whether 4 bits are searched rather than rounded to nearest. At 8 bits a search has
            nothing to gain.
    """

    bits: int
    block_size: int = 32
    symmetric: bool = False
    table: bool = False
    searched: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise UsageError(f"{self.bits} bits: ONNX Runtime's blocks are written with 4 or 8")
        if self.block_size not in BLOCK_SIZES:
            raise UsageError(
                f"block size {self.block_size}: give {', '.join(map(str, BLOCK_SIZES[:-1]))} "
                f"or {BLOCK_SIZES[-1]}"
            )

    @property
    def name(self) -> str:
        kind = "symmetric" if self.symmetric else "asymmetric"
        return f"Q{self.bits} bs{self.block_size} {kind}"

    @property
    def label(self) -> str:
        return f"int{self.bits}"

    @property
    def sub_block_size(self) -> int:
        return self.block_size

    @property
    def max_code(self) -> int:
        return (1 << self.bits) - 1

    @property
    def zero_point(self) -> int:
        return 1 << self.bits - 1 if self.symmetric else 0

    @property
    def block_bytes(self) -> int:
        return self._head_bytes + self.block_size * self.bits // 8

    @property
    def rounding(self) -> Rounding | None:
        if self.searched and self.bits == 4:
            return None
        if not self.symmetric:
            return MinMaxRounding()
        return ExtremeRounding() if self.bits == 4 else AbsMaxRounding()

    @property
    def search(self) -> Search | None:
        if not self.searched or self.bits != 4:
            return None
        return SIGNED_4_BITS if self.symmetric else ZeroPointSearch()

    def with_search(self) -> MatMulNBits:
        return replace(self, searched=True)

    def arrays(self, shape: Sequence[int]) -> tuple[Array, ...]:
        """Codes, scales and zero points; suffixes as onnxruntime's own quantizer names them."""
        if len(shape) != 2 or shape[1] % self.block_size:
            raise InputError(
                f"a tensor {list(shape)} does not divide into blocks of {self.block_size}; "
                "choose a smaller block size"
            )
        rows, blocks = shape[0], shape[1] // self.block_size
        code_bytes = self.block_size * self.bits // 8
        codes = (rows, blocks * code_bytes) if self.table else (rows, blocks, code_bytes)
        zero_points = -(-blocks * self.bits // 8)
        arrays = (
            Array(f"_Q{self.bits}", codes, "U8", blocks * code_bytes),
            Array("_scales", (rows, blocks), "F16", 2 * blocks),
            Array("_zero_points", (rows, zero_points), "U8", zero_points),
        )
        return arrays[:2] if self.symmetric else arrays

    def encode(
        self, rows: torch.Tensor, weight: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        self.arrays(rows.shape)
        if self.is_searched(weight is not None):
            return self.split_rows(self.encode_rows(rows, weight))
        tiles = rows.split(max(1, TILE // rows.shape[1]))
        packed = [
            self.pack_arrays(self.fit(tile.reshape(-1, self.block_size)), len(tile))
            for tile in tiles
        ]
        return tuple(torch.cat(parts) for parts in zip(*packed, strict=True))

    def decode(self, arrays: Sequence[torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
        if len(arrays) == 1:
            return self.decode_rows(arrays[0], shape)
        return self.values(self.unpack_arrays(arrays)).reshape(*shape)

    def split_rows(self, packed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        params = self.unpack(packed.reshape(-1, self.block_bytes))
        return self.pack_arrays(params, len(packed))

    def pack_arrays(self, params: BlockParams, rows: int) -> tuple[torch.Tensor, ...]:
        """The arrays of `arrays`, for the blocks of so many rows, one row's after the other's."""
        scales = self.require_finite(params.d).reshape(rows, -1)
        codes = self._join(blocks_first(params.codes).reshape(rows, -1))
        if not self.table:
            codes = codes.reshape(*scales.shape, -1)
        packed = (codes.contiguous(), scales.contiguous())
        if params.minimums is None:
            return packed
        return (*packed, self._join(params.minimums.reshape(rows, -1)))

    def unpack_arrays(self, arrays: Sequence[torch.Tensor]) -> BlockParams:
        """The inverse of `pack_arrays`; a single array is rows of packed blocks."""
        if len(arrays) == 1:
            return super().unpack_arrays(arrays)
        codes, scales = arrays[:2]
        rows, blocks = scales.shape
        codes = self._split(codes.reshape(rows, -1)).reshape(-1, self.block_size).t()
        if self.symmetric:
            return BlockParams.without_sub_blocks(codes, scales.flatten())
        zero_points = self._split(arrays[2])[:, :blocks].flatten()
        return BlockParams.with_zero_points(codes, scales.flatten(), zero_points)

    def pack(self, params: BlockParams) -> torch.Tensor:
        head = [self.require_finite(params.d)[:, None].view(torch.uint8)]
        if params.minimums is not None:
            head.append(params.minimums.t())
        return torch.cat([*head, self._join(blocks_first(params.codes))], 1)

    def unpack(self, packed: torch.Tensor) -> BlockParams:
        (d,) = float16_columns(packed, 0, 2)
        codes = self._split(packed[:, self._head_bytes :]).t()
        if self.symmetric:
            return BlockParams.without_sub_blocks(codes, d)
        return BlockParams.with_zero_points(codes, d, packed[:, 2])

    @property
    def _head_bytes(self) -> int:
        """Bytes of a packed block before its codes: the scale and the zero point."""
        return 2 if self.symmetric else 3

    def _join(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes [n, k] as bytes, two of 4 bits in one; a row of an odd number ends in 0."""
        if self.bits == 8:
            return codes.contiguous()
        if codes.shape[1] % 2:
            codes = torch.nn.functional.pad(codes, (0, 1))
        return codes[:, 0::2] | codes[:, 1::2] << 4

    def _split(self, joined: torch.Tensor) -> torch.Tensor:
        """The inverse of `_join`, with the code that fills up a row."""
        return joined if self.bits == 8 else torch.stack([joined & 15, joined >> 4], -1).flatten(1)
