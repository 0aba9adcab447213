"""A block type's blocks taken apart: codes, scales and minimums as tensors.

A block is cut into sub-blocks, and

    weight = d * scale * (code - zero) - dmin * minimum

with one d and dmin a block, one scale and minimum a sub-block. Types without sub-blocks have one,
of scale 1; types without a minimum have neither it nor dmin. Parts lie with their blocks on the
last axis: every step of a search or of packing is then one operation on long runs of memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Parts", "blocks_first", "blocks_last"]


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

    @classmethod
    def whole(cls, codes: torch.Tensor, d: torch.Tensor, dmin: torch.Tensor | None = None) -> Parts:
        """Of a type without sub-blocks: codes [sub_size, n], d and dmin [n]."""
        one = torch.ones_like(d, dtype=torch.uint8)[None]
        return cls(codes[None], one.view(torch.int8), d, None if dmin is None else one, dmin)

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


def blocks_last(blocks: torch.Tensor, sub_size: int) -> torch.Tensor:
    """[n, size] as [size / sub_size, sub_size, n] in memory of its own."""
    return blocks.t().contiguous().view(-1, sub_size, len(blocks))


def blocks_first(parts: torch.Tensor) -> torch.Tensor:
    """[..., n] as [n, the rest in one]."""
    return parts.reshape(-1, parts.shape[-1]).t().contiguous()
