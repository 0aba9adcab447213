"""Quantized blocks: their parameters as tensors, and the layout that turns these into bytes.

A row of weights is cut into blocks and a block into sub-blocks. In ggml's terms

    weight = d * scale * (code - zero_point) - dmin * minimum

where a block has one d and one dmin, and a sub-block has one scale and one minimum. If a type has
no sub-blocks, its block is a single sub-block of scale 1. If a type has no minimum, it has no dmin
either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from cgconvert.errors import InputError
from cgconvert.lazy import torch

__all__ = [
    "BlockLayout",
    "BlockParams",
    "blocks_first",
    "blocks_last",
    "float16_columns",
    "unrepresentable_error",
]


@dataclass(frozen=True)
class BlockParams:
    """The quantization parameters of n blocks.

    Blocks are the last axis, so that each operation of a search runs over contiguous memory.

    Attributes:
        codes: uint8 [sub_blocks, sub_block_size, n]; the smallest is 0.
        scales: int8 [sub_blocks, n].
        d: float16 [n].
        minimums: uint8 [sub_blocks, n], or None if the type has no minimum.
        dmin: float16 [n], or None if the type has no minimum.
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
        """Make the parameters of blocks without sub-blocks.

        Args:
            codes: uint8 [block_size, n].
            d: float16 [n].
            dmin: float16 [n], or None if the type has no minimum.
        """
        ones = torch.ones_like(d, dtype=torch.uint8)[None]
        return cls(codes[None], ones.view(torch.int8), d, None if dmin is None else ones, dmin)

    @classmethod
    def with_zero_points(
        cls, codes: torch.Tensor, d: torch.Tensor, zero_points: torch.Tensor
    ) -> BlockParams:
        """Make the parameters of blocks without sub-blocks that have a zero point each.

        The zero point is held as a minimum whose dmin is d. All products of a float16 and a code
        are exact in float32, so d * code - d * zero_point equals d * (code - zero_point).

        Args:
            codes: uint8 [block_size, n].
            d: float16 [n].
            zero_points: uint8 [n].
        """
        params = cls.without_sub_blocks(codes, d)
        return cls(params.codes, params.scales, d, zero_points.contiguous()[None], d)

    def steps(self) -> torch.Tensor:
        """Return the distance of the weights of neighbouring codes, float32 [sub_blocks, n]."""
        return self.d.float() * self.scales

    def offsets(self) -> torch.Tensor | None:
        """Return what is subtracted from every weight of a sub-block, float32 [sub_blocks, n].

        None if the type has no minimum.
        """
        if self.minimums is None or self.dmin is None:
            return None
        return self.dmin.float() * self.minimums

    def first(self, count: int) -> BlockParams:
        """Return the parameters of the first `count` blocks."""
        if count == len(self.d):
            return self
        minimums = None if self.minimums is None else self.minimums[:, :count]
        dmin = None if self.dmin is None else self.dmin[:count]
        codes, scales = self.codes[..., :count], self.scales[:, :count]
        return BlockParams(codes, scales, self.d[:count], minimums, dmin)


class BlockLayout(ABC):
    """The layout of a block type: where in the bytes of a block its parameters lie.

    All blocks of a type have the same layout.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The type's name in plans, manifests and messages."""

    @property
    @abstractmethod
    def block_size(self) -> int:
        """The number of weights in a block; a row of a matrix consists of whole blocks."""

    @property
    @abstractmethod
    def sub_block_size(self) -> int:
        """The number of weights that share a scale; block_size if there are no sub-blocks."""

    @property
    @abstractmethod
    def block_bytes(self) -> int:
        """The number of bytes of a packed block."""

    @property
    @abstractmethod
    def max_code(self) -> int:
        """The largest code; the smallest is 0."""

    @property
    def zero_point(self) -> int:
        """The code of the weight 0, as long as no minimum is subtracted."""
        return 0

    @property
    def scale_bits(self) -> int | None:
        """The bits of a sub-block's integer scale, and of its minimum; None without sub-blocks.

        Scales are unsigned if the type has minimums, otherwise signed.
        """
        return None

    @abstractmethod
    def pack(self, params: BlockParams) -> torch.Tensor:
        """Write the parameters of n blocks into bytes, uint8 [n, block_bytes].

        Raises InputError if a d or dmin is not finite.
        """

    @abstractmethod
    def unpack(self, packed: torch.Tensor) -> BlockParams:
        """Read the parameters of n blocks from bytes, uint8 [n, block_bytes].

        `pack` turns the result into the same bytes again, whatever their bits are.
        """

    def values(self, params: BlockParams) -> torch.Tensor:
        """Decode n blocks to weights, float32 [n, block_size].

        The weights are bit for bit those of ggml and gguf-py: every operation is rounded to
        float32, and there is no fused multiply-add.
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
        """Return the bytes of d, or of d and dmin if the type has it: uint8 [n, 2 or 4].

        Raises InputError if a d or dmin is not finite.
        """
        halves = [params.d] if params.dmin is None else [params.d, params.dmin]
        scales = torch.stack([self.require_finite(half) for half in halves], 1)
        return scales.view(torch.uint8)

    def require_finite(self, scales: torch.Tensor) -> torch.Tensor:
        """Return `scales` (float16) unchanged; raises InputError if one is infinite or NaN."""
        if not scales.isfinite().all():
            raise unrepresentable_error(self.name)
        return scales


def unrepresentable_error(type_name: str) -> InputError:
    """Make the error for weights that blocks of a type cannot hold."""
    return InputError(
        f"{type_name} cannot hold these weights: one is NaN, infinite or so large that the scale "
        "of its block overflows float16; check the source, or choose float32"
    )


def blocks_last(blocks: torch.Tensor, sub_block_size: int) -> torch.Tensor:
    """Copy blocks [n, block_size] into the order of a search, [sub_blocks, sub_block_size, n]."""
    return blocks.t().contiguous().view(-1, sub_block_size, len(blocks))


def blocks_first(values: torch.Tensor) -> torch.Tensor:
    """Turn [..., n], whose last axis is the blocks, into contiguous [n, product of the other axes].

    It copies nothing if the blocks already lie together in memory.
    """
    return values.reshape(-1, values.shape[-1]).t().contiguous()


def float16_columns(packed: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Read the float16 numbers in bytes [start, stop) of each block uint8 [n, block_bytes].

    Returns float16 [number of float16 values in a block, n].
    """
    # A copy, because a view as float16 needs even offsets. contiguous() would not copy the slice
    # of a single block.
    columns = packed[:, start:stop].clone(memory_format=torch.contiguous_format)
    return columns.view(torch.float16).t().contiguous()
