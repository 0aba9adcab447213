"""Quantized blocks: their parameters as tensors, and the layout that turns these into bytes.

A row of weights is cut into blocks, a block into sub-blocks, and

    weight = d * scale * (code - zero_point) - dmin * minimum

with one d and dmin a block, one scale and minimum a sub-block. Types without sub-blocks have a
single one, of scale 1; types without a minimum have neither it nor dmin.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from cgconvert.errors import InputError

__all__ = [
    "BlockLayout",
    "BlockParams",
    "blocks_first",
    "blocks_last",
    "column_bytes",
    "float16_columns",
    "unrepresentable",
]


@dataclass(frozen=True)
class BlockParams:
    """The quantization parameters of n blocks.

    Blocks are the last axis, so that each step of a search is one operation on long runs of memory.

    Attributes:
        codes: uint8 [sub_blocks, sub_block_size, n], from 0 up.
        scales: int8 [sub_blocks, n].
        d: float16 [n].
        minimums: uint8 [sub_blocks, n], or None where the type has no minimum.
        dmin: float16 [n], or None where the type has no minimum.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    d: torch.Tensor
    minimums: torch.Tensor | None = None
    dmin: torch.Tensor | None = None

    @classmethod
    def without_sub_blocks(
        cls, codes: torch.Tensor, d: torch.Tensor, dmin: torch.Tensor | None = None
    ) -> BlockParams:
        """Parameters of blocks that have d and dmin [n] alone; codes are [block_size, n]."""
        ones = torch.ones_like(d, dtype=torch.uint8)[None]
        return cls(codes[None], ones.view(torch.int8), d, None if dmin is None else ones, dmin)

    @classmethod
    def with_zero_points(
        cls, codes: torch.Tensor, d: torch.Tensor, zero_points: torch.Tensor
    ) -> BlockParams:
        """Parameters of blocks with a zero point uint8 [n] each; codes are [block_size, n].

        A zero point is a minimum in steps of the scale: d * code - d * zero_point is exact in
        float32, since both products are.
        """
        params = cls.without_sub_blocks(codes, d)
        return cls(params.codes, params.scales, d, zero_points.contiguous()[None], d)

    def steps(self) -> torch.Tensor:
        """The distance between the weights of two neighbouring codes: float32 [sub_blocks, n]."""
        return self.d.float() * self.scales

    def offsets(self) -> torch.Tensor | None:
        """The number subtracted from every weight of a sub-block: float32 [sub_blocks, n]."""
        if self.minimums is None or self.dmin is None:
            return None
        return self.dmin.float() * self.minimums

    def first(self, count: int) -> BlockParams:
        """The parameters of the first `count` blocks."""
        if count == len(self.d):
            return self
        minimums = None if self.minimums is None else self.minimums[:, :count]
        dmin = None if self.dmin is None else self.dmin[:count]
        codes, scales = self.codes[..., :count], self.scales[:, :count]
        return BlockParams(codes, scales, self.d[:count], minimums, dmin)


class BlockLayout(ABC):
    """How the parameters of a block lie in its bytes.

    Attributes are read-only and the same for every block.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The type's name in plans, manifests and messages."""

    @property
    @abstractmethod
    def block_size(self) -> int:
        """Weights of a block; rows of a matrix are a multiple of it long."""

    @property
    @abstractmethod
    def sub_block_size(self) -> int:
        """Weights that share a scale: the block's, where it has no sub-blocks."""

    @property
    @abstractmethod
    def block_bytes(self) -> int:
        """Bytes of a packed block."""

    @property
    @abstractmethod
    def max_code(self) -> int:
        """The largest code; the least is 0."""

    @property
    def zero_point(self) -> int:
        """The code of weight 0 where no minimum is subtracted."""
        return 0

    @property
    def scale_bits(self) -> int | None:
        """Bits of the integer scale (and minimum) of a sub-block; None where there are none.

        Scales are unsigned where the type has minimums, else signed.
        """
        return None

    @abstractmethod
    def pack(self, params: BlockParams) -> torch.Tensor:
        """The blocks as bytes, uint8 [n, block_bytes].

        Raises InputError where d or dmin is not finite.
        """

    @abstractmethod
    def unpack(self, packed: torch.Tensor) -> BlockParams:
        """The parameters in bytes uint8 [n, block_bytes]; any bits pack to the same bytes again."""

    def values(self, params: BlockParams) -> torch.Tensor:
        """The weights, float32 [n, block_size], rounded as ggml and gguf-py do.

        That is one rounding an operation, and no fused multiply-add.
        """
        codes = params.codes.float()
        if self.zero_point:
            codes -= self.zero_point
        weights = codes.mul_(params.steps().unsqueeze(-2))
        offsets = params.offsets()
        if offsets is not None:
            weights -= offsets.unsqueeze(-2)
        return blocks_first(weights)

    def scale_bytes(self, params: BlockParams) -> torch.Tensor:
        """The bytes of d and, where there is one, dmin: uint8 [n, 2 or 4]."""
        halves = [params.d] if params.dmin is None else [params.d, params.dmin]
        scales = torch.stack([self.require_finite(half) for half in halves], 1)
        return scales.view(torch.uint8)

    def require_finite(self, scales: torch.Tensor) -> torch.Tensor:
        """`scales` float16, unchanged. Raises InputError where one is infinite or NaN."""
        if not scales.isfinite().all():
            raise unrepresentable(self.name)
        return scales


def unrepresentable(name: str) -> InputError:
    """The error for weights that blocks of the type `name` cannot hold."""
    return InputError(
        f"{name} cannot hold these weights: one is NaN, infinite or so large that the scale of its "
        "block overflows float16; check the source, or choose float32"
    )


def blocks_last(blocks: torch.Tensor, sub_block_size: int) -> torch.Tensor:
    """[n, block_size] as [sub_blocks, sub_block_size, n] in memory of its own."""
    return blocks.t().contiguous().view(-1, sub_block_size, len(blocks))


def blocks_first(values: torch.Tensor) -> torch.Tensor:
    """[..., n] as contiguous [n, all other axes in one]; no copy where it lies so already."""
    return values.reshape(-1, values.shape[-1]).t().contiguous()


def column_bytes(packed: torch.Tensor, first: int, stop: int) -> torch.Tensor:
    """Bytes [first, stop) of each block in memory of their own, so that they can be viewed wider.

    A plain contiguous() keeps the odd offset of a slice of a single block.
    """
    return packed[:, first:stop].clone(memory_format=torch.contiguous_format)


def float16_columns(packed: torch.Tensor, first: int, stop: int) -> torch.Tensor:
    """The float16 numbers in bytes [first, stop) of each block, [numbers, n]."""
    return column_bytes(packed, first, stop).view(torch.float16).t().contiguous()
