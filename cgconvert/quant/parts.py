"""Block types taken apart: codes, scales and minimums as tensors, and a search that finds them.

A block is cut into sub-blocks of `sub_size` weights, and

    weight = d * scale * (code - zero) - dmin * minimum

with one d and dmin a block, one scale and minimum a sub-block. Types without sub-blocks have one,
of scale 1; types without a minimum have neither it nor dmin.

Parts lie with their blocks on the last axis: every step of a search or of packing is then one
operation on long runs of memory.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch

from cgconvert.quant.blocks import BlockType

__all__ = ["Parts", "SearchedType", "blocks_first", "blocks_last"]

COLUMNS = 64
"""A search is given a multiple of this many blocks. Within whole groups of 64 columns torch.sum
adds each in the same order (it unrolls four vectors), so a block's bytes do not depend on what
other blocks are encoded with it."""


@dataclass(frozen=True)
class Parts:
    """n blocks taken apart.

    `codes` uint8 [subs, sub_size, n], from 0; `scales` int8 and `minimums` uint8 [subs, n]; `d`
    and `dmin` float16 [n].
    """

    codes: torch.Tensor
    scales: torch.Tensor
    d: torch.Tensor
    minimums: torch.Tensor | None = None
    dmin: torch.Tensor | None = None

    def steps(self) -> torch.Tensor:
        """float32 [subs, n]: what one more in a code adds to a weight."""
        return self.d.float() * self.scales

    def offsets(self) -> torch.Tensor | None:
        """float32 [subs, n]: what is taken off every weight."""
        if self.minimums is None or self.dmin is None:
            return None
        return self.dmin.float() * self.minimums

    def cut(self, count: int) -> Parts:
        """The first `count` blocks."""
        least = None if self.minimums is None else self.minimums[:, :count]
        dmin = None if self.dmin is None else self.dmin[:count]
        return Parts(self.codes[..., :count], self.scales[:, :count], self.d[:count], least, dmin)


class SearchedType(BlockType):
    """A block type whose parts are searched for least squared error.

    `top` is the largest code, `zero` the code of weight 0 where there is no minimum.
    """

    sub_size: int
    top: int
    zero: int = 0

    @abstractmethod
    def find(self, x: torch.Tensor, weight: torch.Tensor | None) -> Parts:
        """The parts of blocks float32 [subs, sub_size, n], n a multiple of COLUMNS."""

    @abstractmethod
    def pack(self, parts: Parts) -> torch.Tensor:
        """uint8 [n, block_bytes]. Raises InputError where d or dmin is not finite."""

    @abstractmethod
    def unpack(self, coded: torch.Tensor) -> Parts:
        """What uint8 [n, block_bytes] say; whatever the bits are, it packs to them again."""

    def search(self, blocks: torch.Tensor, weight: torch.Tensor | None = None) -> Parts:
        """Parts of least squared error for blocks [n, block_size].

        `weight`, [block_size] or [n, block_size], is how much each squared error counts: the mean
        square of the input a column meets, for one. Only ratios matter; from 1e-12 to 1e12.
        Raises InputError where a weight of the model is not finite.
        """
        count = len(blocks)
        if weight is not None:
            weight = weight.expand(blocks.shape)
            weight = blocks_last(_whole(weight.float(), 1.0), self.sub_size)
        x = blocks_last(_whole(blocks.float(), 0.0), self.sub_size)
        parts = self.find(x, weight)
        return parts if parts.d.shape[0] == count else parts.cut(count)

    def d_bytes(self, parts: Parts) -> torch.Tensor:
        """d and, where there is one, dmin: uint8 [n, 2 or 4]."""
        d = self.float16_bytes(parts.d[:, None])
        if parts.dmin is None:
            return d
        return torch.cat([d, self.float16_bytes(parts.dmin[:, None])], 1)

    def values(self, parts: Parts) -> torch.Tensor:
        """The weights, float32 [n, block_size], rounded as gguf-py and ggml do."""
        weights = (parts.codes.float() - self.zero).mul_(parts.steps().unsqueeze(-2))
        offsets = parts.offsets()
        if offsets is not None:
            weights -= offsets.unsqueeze(-2)
        return blocks_first(weights)

    def encode_blocks(
        self, blocks: torch.Tensor, weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.pack(self.search(blocks, weight))

    def decode_blocks(self, blocks: torch.Tensor) -> torch.Tensor:
        return self.values(self.unpack(blocks))


def blocks_last(blocks: torch.Tensor, sub_size: int) -> torch.Tensor:
    """[n, size] as [size / sub_size, sub_size, n] in memory of its own."""
    return blocks.t().contiguous().view(-1, sub_size, len(blocks))


def blocks_first(parts: torch.Tensor) -> torch.Tensor:
    """[..., n] as [n, the rest in one]."""
    return parts.reshape(-1, parts.shape[-1]).t().contiguous()


def _whole(blocks: torch.Tensor, fill: float) -> torch.Tensor:
    missing = -len(blocks) % COLUMNS
    if not missing:
        return blocks
    return torch.cat([blocks, blocks.new_full((missing, blocks.shape[1]), fill)])
