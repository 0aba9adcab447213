"""ONNX Runtime's block quantization: MatMulNBits for matrices, GatherBlockQuantized for tables.

The format is defined in docs/ContribOperators.md of onnxruntime. A row is cut into blocks of
`block_size` weights; weight = scale * (code - zero_point). A byte holds two codes of 4 bits, the
first in the low nibble; the zero points of a row are stored in the same way. If there are no zero
points, the operators use 2^(bits - 1).

The operators read codes, scales and zero points as separate arrays. Between calibration and the
writer, a block is packed instead: its float16 scale, its zero point if it has one, and its codes
follow one another. So packed rows can be sliced, reordered and concatenated like rows of numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cgconvert.codecs.block_codec import TILE, BlockCodec
from cgconvert.codecs.block_layout import BlockParams, blocks_first, float16_columns
from cgconvert.codecs.encoding import Array
from cgconvert.codecs.ggml.blocks_of_32 import SIGNED_4_BITS
from cgconvert.codecs.matmul_nbits_choices import BLOCK_SIZES
from cgconvert.codecs.search.least_squares import Search
from cgconvert.codecs.search.rounding import (
    AbsMaxRounding,
    ExtremeRounding,
    MinMaxRounding,
    Rounding,
)
from cgconvert.codecs.search.zero_point import ZeroPointSearch
from cgconvert.errors import InputError, UsageError
from cgconvert.lazy import torch

__all__ = ["MatMulNBits"]


@dataclass(frozen=True)
class MatMulNBits(BlockCodec):
    """The codec of weights [N, K] in codes, float16 scales and, if asymmetric, zero points.

    Symmetric blocks are rounded as GGUF's Q4_0 and Q8_0 are, so that a model gets the same numbers
    in both formats.

    Attributes:
        bits: 4 or 8.
        block_size: the number of weights that share a scale.
        symmetric: blocks have no zero points.
        table: the array of codes has the shape [N, K * bits / 8] that GatherBlockQuantized requires
            rather than MatMulNBits' [N, blocks, block_size * bits / 8]. The bytes are the same.
        searched: blocks of 4 bits are searched rather than rounded to nearest. Blocks of 8 bits are
            always rounded, because a search lowers their error hardly at all.
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
        """List the arrays of codes, scales and zero points, named as by onnxruntime's quantizer."""
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
        self, rows: torch.Tensor, importance: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        self.arrays(rows.shape)  # raises InputError if rows are not whole blocks
        if self.is_searched(importance is not None):
            return self.split_rows(self.encode_rows(rows, importance))
        # Rounded blocks go into the arrays at once, without packed rows between.
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
        """Write the parameters of the blocks of `rows` rows into the arrays of a file."""
        scales = self.require_finite(params.d).reshape(rows, -1)
        codes = self._pack_codes(blocks_first(params.codes).reshape(rows, -1))
        if not self.table:
            codes = codes.reshape(*scales.shape, -1)
        packed = (codes.contiguous(), scales.contiguous())
        if params.minimums is None:
            return packed
        return (*packed, self._pack_codes(params.minimums.reshape(rows, -1)))

    def unpack_arrays(self, arrays: Sequence[torch.Tensor]) -> BlockParams:
        """Read the parameters from a file's arrays, or from a single array of packed rows."""
        if len(arrays) == 1:
            return super().unpack_arrays(arrays)
        codes, scales = arrays[:2]
        rows, blocks = scales.shape
        codes = self._unpack_codes(codes.reshape(rows, -1)).reshape(-1, self.block_size).t()
        if self.symmetric:
            return BlockParams.without_sub_blocks(codes, scales.flatten())
        zero_points = self._unpack_codes(arrays[2])[:, :blocks].flatten()
        return BlockParams.with_zero_points(codes, scales.flatten(), zero_points)

    def pack(self, params: BlockParams) -> torch.Tensor:
        head = [self.require_finite(params.d)[:, None].view(torch.uint8)]
        if params.minimums is not None:
            head.append(params.minimums.t())
        return torch.cat([*head, self._pack_codes(blocks_first(params.codes))], 1)

    def unpack(self, packed: torch.Tensor) -> BlockParams:
        (d,) = float16_columns(packed, 0, 2)
        codes = self._unpack_codes(packed[:, self._head_bytes :]).t()
        if self.symmetric:
            return BlockParams.without_sub_blocks(codes, d)
        return BlockParams.with_zero_points(codes, d, packed[:, 2])

    @property
    def _head_bytes(self) -> int:
        """The bytes of a packed block before its codes: those of the scale and the zero point."""
        return 2 if self.symmetric else 3

    def _pack_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Pack codes uint8 [n, k] into bytes: [n, k] at 8 bits, [n, ceil(k / 2)] at 4 bits.

        If the last byte of a row holds a single code, its high nibble is 0.
        """
        if self.bits == 8:
            return codes.contiguous()
        if codes.shape[1] % 2:
            codes = torch.nn.functional.pad(codes, (0, 1))
        return codes[:, 0::2] | codes[:, 1::2] << 4

    def _unpack_codes(self, joined: torch.Tensor) -> torch.Tensor:
        """Unpack bytes into codes; a padding nibble becomes a code too."""
        return joined if self.bits == 8 else torch.stack([joined & 15, joined >> 4], -1).flatten(1)
