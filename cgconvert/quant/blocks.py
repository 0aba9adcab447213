"""What ggml's block types share: a row is cut into blocks, each becomes the same number of bytes.

A block depends on nothing outside it, so rows can be encoded in any chunks. The arithmetic is that
of ggml-quants.c in float32, one rounding an operation and no fused multiply-add, which is what
llama.cpp's x86 builds and gguf-py do.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from cgconvert.errors import InputError
from cgconvert.quant.encoding import Array

__all__ = ["BlockType", "column_bytes", "reciprocal"]

TILE = 1 << 18
"""Weights worked on at once: 1 MB of float32, so that temporaries stay in a core's cache."""


class BlockType(ABC):
    """An Encoding of matrices whose rows are a multiple of `block_size` weights long.

    Subclasses are stateless: two functions between blocks of weights and blocks of bytes.
    """

    name: str
    block_size: int
    block_bytes: int

    @abstractmethod
    def encode_blocks(self, blocks: torch.Tensor) -> torch.Tensor:
        """float32 [n, block_size] to uint8 [n, block_bytes]."""

    @abstractmethod
    def decode_blocks(self, blocks: torch.Tensor) -> torch.Tensor:
        """uint8 [n, block_bytes] to float32 [n, block_size]."""

    def arrays(self, shape: Sequence[int]) -> tuple[Array, ...]:
        """One array, of the tensor's own shape as GGUF records it."""
        return (Array("", tuple(shape), self.name, self.row_bytes(shape)),)

    def row_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of one row. Raises InputError where the rows do not divide into blocks."""
        if len(shape) < 2 or shape[-1] % self.block_size:
            raise InputError(
                f"a tensor {list(shape)} cannot be {self.name}: its rows must be a multiple of "
                f"{self.block_size} long; choose F16"
            )
        return math.prod(shape[1:]) // self.block_size * self.block_bytes

    def encode(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """uint8 [n, bytes of a row] for rows [n, ...].

        Raises InputError where a value is not finite or so large that a scale overflows float16.
        """
        width = self.row_bytes(rows.shape)
        blocks = rows.reshape(-1, self.block_size)
        coded = torch.empty((len(blocks), self.block_bytes), dtype=torch.uint8)
        step = TILE // self.block_size
        for first in range(0, len(blocks), step):
            tile = blocks[first : first + step].float()
            coded[first : first + step] = self.encode_blocks(tile)
        return (coded.reshape(-1, width),)

    def decode(self, coded: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """The weights that bytes stand for: uint8 of any shape to float32 of `shape`."""
        blocks = coded.reshape(-1, self.block_bytes)
        weights = torch.empty((len(blocks), self.block_size))
        step = TILE // self.block_size
        for first in range(0, len(blocks), step):
            weights[first : first + step] = self.decode_blocks(blocks[first : first + step])
        return weights.reshape(*shape)

    def float16_bytes(self, scales: torch.Tensor) -> torch.Tensor:
        """float32 scales [n, 1] as their float16 bytes, uint8 [n, 2]."""
        half = scales.half()
        if not half.isfinite().all():
            raise InputError(
                f"{self.name} cannot hold these weights: one is NaN, infinite or so large that "
                "the scale of its block overflows float16; check the source, or choose F32"
            )
        return half.view(torch.uint8)


def column_bytes(blocks: torch.Tensor, first: int, stop: int) -> torch.Tensor:
    """Bytes [first, stop) of each block in memory of their own, so that they can be viewed wider.

    A plain contiguous() keeps the odd offset of a slice of a single block.
    """
    return blocks[:, first:stop].clone(memory_format=torch.contiguous_format)


def reciprocal(scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """1 / scales, 0 where it is not finite, and where the scale is so small that 1 / it overflows.

    ggml gives a block of zeros the inverse 0; one of denormals the inverse infinity, whose
    products have no int8: x86 makes all of them 0.
    """
    inverse = 1.0 / scales
    tiny = inverse.isinf() & (scales != 0)
    return torch.where(inverse.isinf(), 0.0, inverse), tiny
