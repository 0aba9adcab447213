"""What ggml's block types share: a row is cut into blocks, each becomes the same number of bytes.

A block depends on nothing outside it, so rows can be encoded in any chunks. The arithmetic is that
of ggml-quants.c in float32, one rounding an operation and no fused multiply-add, which is what
llama.cpp's x86 builds and gguf-py do.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from cgconvert.errors import InputError
from cgconvert.quant.encoding import Array

__all__ = ["BlockType", "column_bytes", "reciprocal"]

TILE = 1 << 16
"""Weights worked on at once on a CPU, 256 KB of float32: temporaries stay in a core's cache."""

GPU_TILE = 1 << 23
"""The same on a GPU, where it bounds memory: some hundred bytes a weight while it is searched."""


class BlockType(ABC):
    """An Encoding of matrices whose rows are a multiple of `block_size` weights long.

    Subclasses are stateless: two functions between blocks of weights and blocks of bytes.
    """

    name: str
    block_size: int
    block_bytes: int

    @abstractmethod
    def encode_blocks(
        self, blocks: torch.Tensor, weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """float32 [n, block_size] to uint8 [n, block_bytes].

        `weight`, of the same shape, is how much each squared error counts.
        """

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
            weight = weight.expand(rows.shape).reshape(-1, self.block_size)
        coded = torch.empty((len(blocks), self.block_bytes), dtype=torch.uint8, device=rows.device)

        def encode(tile: slice) -> None:
            share = None if weight is None else weight[tile].float()
            coded[tile] = self.encode_blocks(blocks[tile].float(), share)

        _each_tile(encode, len(blocks), self.block_size, rows.device)
        return (coded.reshape(-1, width),)

    def decode(self, coded: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """The weights that bytes stand for: uint8 of any shape to float32 of `shape`."""
        blocks = coded.reshape(-1, self.block_bytes)
        weights = torch.empty((len(blocks), self.block_size), device=coded.device)

        def decode(tile: slice) -> None:
            weights[tile] = self.decode_blocks(blocks[tile])

        _each_tile(decode, len(blocks), self.block_size, coded.device)
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


def _each_tile(
    work: Callable[[slice], None], count: int, block_size: int, device: torch.device
) -> None:
    """Call `work` for every tile of `count` blocks, on as many threads as torch computes with.

    Each tile is one thread's: operations on so little do not gain from being split, and the order
    of a sum would depend on the split.
    """
    step = max(1, (TILE if device.type == "cpu" else GPU_TILE) // block_size)
    tiles = [slice(first, first + step) for first in range(0, count, step)]
    threads = min(len(tiles), torch.get_num_threads()) if device.type == "cpu" else 1
    if threads <= 1:
        for tile in tiles:
            work(tile)
        return
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(work, tiles):
                pass
    finally:
        torch.set_num_threads(before)  # of the threads to come; this one's never changed


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
