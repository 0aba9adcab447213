"""Block types whose parts are searched for the least squared error."""

from __future__ import annotations

from abc import abstractmethod

import torch

from cgconvert.quant.blocks import BlockType, tiles
from cgconvert.quant.parts import Parts, blocks_last
from cgconvert.quant.processes import share_out, shared_bytes

__all__ = ["SearchedType"]

COLUMNS = 64
"""Blocks are searched in whole groups of so many. Within them torch.sum adds every column in the
same order (it takes four vectors at a time), so a block's bytes do not depend on the others'."""

TILE = 1 << 17
"""Weights searched at once on a CPU: they, their codes and a product stay in a core's 2 MB."""

GPU_TILE = 1 << 23
"""The same on a GPU, where it bounds memory: some hundred bytes a weight."""

SHARE = 1 << 20
"""Weights worth a process of their own: tens of milliseconds of work, several times a fork."""


class SearchedType(BlockType):
    """`find` says how; what it is given is whole groups of blocks."""

    @abstractmethod
    def find(self, x: torch.Tensor, weight: torch.Tensor | None) -> Parts:
        """The parts of blocks float32 [subs, sub_size, n], n a multiple of COLUMNS."""

    def search(self, blocks: torch.Tensor, weight: torch.Tensor | None = None) -> Parts:
        if weight is not None:
            weight = weight.expand(blocks.shape)
            weight = blocks_last(_whole(weight.float(), 1.0), self.sub_size)
        x = blocks_last(_whole(blocks.float(), 0.0), self.sub_size)
        parts = self.find(x, weight)
        return parts if parts.d.shape[0] == len(blocks) else parts.cut(len(blocks))

    def encode_all(self, blocks: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        if blocks.device.type == "cpu":
            step = TILE // self.block_size
            processes = min(torch.get_num_threads(), blocks.numel() // SHARE)
            coded = shared_bytes((len(blocks), self.block_bytes))
        else:
            step, processes = GPU_TILE // self.block_size, 1
            coded = blocks.new_empty((len(blocks), self.block_bytes), dtype=torch.uint8)

        def work(tile: slice) -> None:
            share = None if weight is None else weight[tile].float()
            coded[tile] = self.encode_blocks(blocks[tile].float(), share)

        share_out(work, tiles(len(blocks), step), max(1, processes))
        return coded


def _whole(blocks: torch.Tensor, fill: float) -> torch.Tensor:
    missing = -len(blocks) % COLUMNS
    if not missing:
        return blocks
    return torch.cat([blocks, blocks.new_full((missing, blocks.shape[1]), fill)])
