"""ONNX Runtime's block quantization: MatMulNBits for matrices, GatherBlockQuantized for tables.

Format: docs/ContribOperators.md of onnxruntime. A row is cut into blocks of `block_size` weights;
`weight = scale * (code - zero_point)`. Codes of 4 bits lie two in a byte, the first in the low
nibble, and so do the zero points of a row. Without zero points the operators take 2^(bits - 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from cgconvert.codecs.block_codec import reciprocal
from cgconvert.codecs.encoding import Array
from cgconvert.errors import InputError, UsageError

__all__ = ["BLOCK_SIZES", "Blocks", "MatMulNBits", "round_to_nearest"]

BLOCK_SIZES = (16, 32, 64, 128, 256)
"""What onnxruntime has CPU kernels for (mlas/lib/qnbitgemm.cpp); it computes others slowly."""

TILE = 1 << 18
"""Weights worked on at once: 1 MB of float32, so that temporaries stay in a core's cache."""


class Blocks(NamedTuple):
    """What a search finds for blocks [rows, blocks, block_size].

    `codes` uint8 of that shape; `scales` float16 and `zero_points` uint8, both [rows, blocks].
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor


def round_to_nearest(blocks: torch.Tensor, bits: int, symmetric: bool) -> Blocks:
    """Codes by rounding between each block's extremes, without a search.

    `blocks` is float32 [rows, blocks, block_size]. Raises InputError where a value is not finite
    or a scale overflows float16.
    """
    return _symmetric(blocks, bits) if symmetric else _asymmetric(blocks, bits)


def _symmetric(blocks: torch.Tensor, bits: int) -> Blocks:
    """As GGUF's Q4_0 (the value of largest magnitude is code 0) and Q8_0 (codes 1 to 255), so that
    a model gets the same numbers in both formats (ggml-quants.c, quantize_row_q4_0_ref and
    quantize_row_q8_0_ref: codes come from the scale before it is rounded to float16)."""
    middle = 1 << bits - 1
    if bits == 4:
        largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
        scales = largest / -middle
        codes = (blocks * reciprocal(scales)[0]).add_(middle + 0.5).floor_().clamp_(0, 15)
    else:
        scales = blocks.abs().amax(-1, keepdim=True) / (middle - 1)
        codes = _half_away(blocks * reciprocal(scales)[0]).add_(middle)
    scales = _float16(scales).squeeze(-1)
    return Blocks(codes.byte(), scales, torch.full_like(scales, middle, dtype=torch.uint8))


def _asymmetric(blocks: torch.Tensor, bits: int) -> Blocks:
    """The range from the least to the largest value, widened to hold 0, in 2^bits - 1 steps."""
    top = (1 << bits) - 1
    low = blocks.amin(-1, keepdim=True).clamp_(max=0)
    high = blocks.amax(-1, keepdim=True).clamp_(min=0)
    scales = _float16((high - low) / top)
    inverse, _ = reciprocal(scales.float())
    zeros = torch.round(-low * inverse).clamp_(0, top)
    codes = torch.round(blocks * inverse).add_(zeros).clamp_(0, top)
    return Blocks(codes.byte(), scales.squeeze(-1), zeros.squeeze(-1).byte())


@dataclass(frozen=True)
class MatMulNBits:
    """Weights [N, K] as codes, float16 scales and, where asymmetric, zero points.

    `table` keeps the codes of a row together, [N, K * bits / 8], which is how
    GatherBlockQuantized wants them; MatMulNBits has them as [N, blocks, block_size * bits / 8].
    The bytes are the same.
    """

    bits: int
    block_size: int = 32
    symmetric: bool = False
    table: bool = False

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

    def arrays(self, shape: Sequence[int]) -> tuple[Array, ...]:
        """Codes, scales and zero points; suffixes as onnxruntime's own quantizer names them."""
        rows, blocks = self._blocks(shape)
        blob = self.block_size * self.bits // 8
        codes = (rows, blocks * blob) if self.table else (rows, blocks, blob)
        zeros = -(-blocks * self.bits // 8)
        arrays = (
            Array(f"_Q{self.bits}", codes, "U8", blocks * blob),
            Array("_scales", (rows, blocks), "F16", 2 * blocks),
            Array("_zero_points", (rows, zeros), "U8", zeros),
        )
        return arrays[:2] if self.symmetric else arrays

    def encode(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Raises InputError where a value is not finite or a scale overflows float16."""
        self._blocks(rows.shape)
        tiles = rows.split(max(1, TILE // rows.shape[1]))
        packed = [
            self.pack(round_to_nearest(self._cut(tile.float()), self.bits, self.symmetric))
            for tile in tiles
        ]
        return tuple(torch.cat(parts) for parts in zip(*packed, strict=True))

    def pack(self, blocks: Blocks) -> tuple[torch.Tensor, ...]:
        """The arrays of `arrays`, out of what any search found."""
        shape = blocks.codes.shape[:1] if self.table else blocks.codes.shape[:2]
        codes = self._bytes(blocks.codes.flatten(1)).reshape(*shape, -1)
        packed = (codes.contiguous(), blocks.scales.contiguous())
        return packed if self.symmetric else (*packed, self._bytes(blocks.zero_points))

    def unpack(self, arrays: Sequence[torch.Tensor]) -> Blocks:
        """The inverse of `pack`."""
        codes, scales = arrays[:2]
        rows, blocks = scales.shape
        codes = self._codes(codes.reshape(rows, -1)).reshape(rows, blocks, self.block_size)
        if self.symmetric:
            return Blocks(codes, scales, torch.full_like(codes[..., 0], 1 << self.bits - 1))
        return Blocks(codes, scales, self._codes(arrays[2])[:, :blocks])

    def decode(self, arrays: Sequence[torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
        """The weights the arrays stand for, float32 of `shape` [N, K]."""
        codes, scales, zeros = self.unpack(arrays)
        steps = codes.float() - zeros.float()[..., None]
        return (steps * scales.float()[..., None]).reshape(*shape)

    def _cut(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.reshape(len(rows), -1, self.block_size)

    def _blocks(self, shape: Sequence[int]) -> tuple[int, int]:
        if len(shape) != 2 or shape[1] % self.block_size:
            raise InputError(
                f"a tensor {list(shape)} does not divide into blocks of {self.block_size}; "
                "choose a smaller block size"
            )
        return shape[0], shape[1] // self.block_size

    def _bytes(self, codes: torch.Tensor) -> torch.Tensor:
        if self.bits == 8:
            return codes.contiguous()
        if codes.shape[1] % 2:
            codes = torch.nn.functional.pad(codes, (0, 1))
        return codes[:, 0::2] | codes[:, 1::2] << 4

    def _codes(self, data: torch.Tensor) -> torch.Tensor:
        return data if self.bits == 8 else torch.stack([data & 15, data >> 4], -1).flatten(1)


def _float16(scales: torch.Tensor) -> torch.Tensor:
    half = scales.half()
    if not half.isfinite().all():
        raise InputError(
            "ONNX Runtime's blocks cannot hold these weights: one is NaN, infinite or so large "
            "that the scale of its block overflows float16; check the source"
        )
    return half


def _half_away(values: torch.Tensor) -> torch.Tensor:
    """Rounded to nearest, ties away from zero, as C's roundf."""
    size = values.abs()
    whole = size.floor()
    return torch.copysign(whole + torch.floor(2 * (size - whole)), values)
