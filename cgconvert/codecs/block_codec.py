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

from cgconvert.codecs.encoding import Array
from cgconvert.codecs.parts import Parts, blocks_first
from cgconvert.errors import InputError

__all__ = ["BlockCodec", "column_bytes", "reciprocal", "tiles"]

TILE = 1 << 18
"""Weights worked on at once: 1 MB of float32, so that temporaries stay in a core's cache."""


class BlockCodec(ABC):
    """An Encoding of matrices whose rows are a multiple of `block_size` weights long.

    `sub_size` weights share a scale, `top` is the largest code, `zero` the code of weight 0 where
    there is no minimum. Subclasses are stateless: a search for parts, and parts from and to bytes.
    """

    name: str
    block_size: int
    sub_size: int
    block_bytes: int
    top: int
    zero: int = 0

    @abstractmethod
    def search(self, blocks: torch.Tensor, weight: torch.Tensor | None = None) -> Parts:
        """Parts of least squared error, as far as the type looks, for blocks [n, block_size].

        `weight`, of a shape that expands to the blocks', is how much each squared error counts:
        the mean square of the input that a column meets, for one. Only ratios matter; from 1e-12
        to 1e12. Raises InputError where a weight of the model is not finite.
        """

    @abstractmethod
    def pack(self, parts: Parts) -> torch.Tensor:
        """uint8 [n, block_bytes]. Raises InputError where d or dmin is not finite."""

    @abstractmethod
    def unpack(self, coded: torch.Tensor) -> Parts:
        """What uint8 [n, block_bytes] say; whatever the bits are, they pack to the same again."""

    def values(self, parts: Parts) -> torch.Tensor:
        """The weights, float32 [n, block_size], rounded as ggml and gguf-py do."""
        weights = (parts.codes.float() - self.zero).mul_(parts.steps().unsqueeze(-2))
        offsets = parts.offsets()
        if offsets is not None:
            weights -= offsets.unsqueeze(-2)
        return blocks_first(weights)

    def encode_blocks(
        self, blocks: torch.Tensor, weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Of any floating type, [n, block_size] to uint8 [n, block_bytes]."""
        return self.pack(self.search(blocks, weight))

    def decode_blocks(self, coded: torch.Tensor) -> torch.Tensor:
        """uint8 [n, block_bytes] to float32 [n, block_size]."""
        return self.values(self.unpack(coded))

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

    def stored_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a matrix in a file. Raises InputError as `row_bytes`."""
        return shape[0] * self.row_bytes(shape)

    def encode(
        self, rows: torch.Tensor, weight: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """uint8 [n, bytes of a row] for rows [n, ...], on the same device.

        `weight`, of a shape that expands to the rows', is how much each squared error counts; only
        ratios matter. Raises InputError where a value is not finite or so large that a scale
        overflows float16.
        """
        width = self.row_bytes(rows.shape)
        blocks = rows.reshape(-1, self.block_size)
        if weight is not None:
            every_row = rows.shape[-weight.dim() :] if weight.dim() < rows.dim() else rows.shape
            weight = weight.expand(every_row).reshape(-1, self.block_size)
        return (self.encode_all(blocks, weight).reshape(-1, width),)

    def encode_all(self, blocks: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        """As encode_blocks, any number of any floating type, some at a time.

        `weight` [n or fewer, block_size] begins again where it ends.
        """
        return self.encode_tiles(blocks, weight, TILE // self.block_size)

    def encode_tiles(
        self, blocks: torch.Tensor, weight: torch.Tensor | None, step: int, first: int = 0
    ) -> torch.Tensor:
        """`step` blocks at a time; the first of them is block `first` to the weight."""
        coded = blocks.new_empty((len(blocks), self.block_bytes), dtype=torch.uint8)
        for tile in tiles(len(blocks), step):
            part, share = blocks[tile], None
            if weight is not None:
                start = first + tile.start
                index = torch.arange(start, start + len(part), device=weight.device)
                share = weight[index % len(weight)].float()
            coded[tile] = self.encode_blocks(part, share)
        return coded

    def decode(self, coded: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """The weights that bytes stand for: uint8 of any shape to float32 of `shape`."""
        blocks = coded.reshape(-1, self.block_bytes)
        weights = torch.empty((len(blocks), self.block_size), device=coded.device)
        for tile in tiles(len(blocks), TILE // self.block_size):
            weights[tile] = self.decode_blocks(blocks[tile])
        return weights.reshape(*shape)

    def d_bytes(self, parts: Parts) -> torch.Tensor:
        """d and, where there is one, dmin: uint8 [n, 2 or 4]."""
        d = self.float16_bytes(parts.d[:, None])
        if parts.dmin is None:
            return d
        return torch.cat([d, self.float16_bytes(parts.dmin[:, None])], 1)

    def float16_bytes(self, scales: torch.Tensor) -> torch.Tensor:
        """float32 scales [n, 1] as their float16 bytes, uint8 [n, 2]."""
        half = scales.half()
        if not half.isfinite().all():
            raise InputError(
                f"{self.name} cannot hold these weights: one is NaN, infinite or so large that "
                "the scale of its block overflows float16; check the source, or choose F32"
            )
        return half.view(torch.uint8)


def tiles(count: int, step: int) -> list[slice]:
    """0 to `count` in slices of at most `step`, and 1 at least."""
    step = max(1, step)
    return [slice(first, first + step) for first in range(0, count, step)]


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
