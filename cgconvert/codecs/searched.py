"""Block types whose parts are searched for the least squared error."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch

from cgconvert.codecs.block_codec import BlockCodec, tiles
from cgconvert.codecs.parts import Parts, blocks_last
from cgconvert.io.parallel import parallel_map

__all__ = ["SearchedCodec"]

COLUMNS = 64
"""Blocks are searched in whole groups of so many. Within them torch.sum adds every column in the
same order (it takes four vectors at a time), so a block's bytes do not depend on the others'."""

TILE = 1 << 19
"""Weights searched at once on a CPU: enough that the work on sub-blocks is more than its calls."""

GPU_TILE = 1 << 23
"""The same on a GPU, where it bounds memory: some hundred bytes a weight."""

SHARE = 1 << 18
"""Weights that are sent to a process at once: some ten milliseconds of work, and of a matrix of a
million weights a share for each of four."""


class SearchedCodec(BlockCodec):
    """`find` says how; what it is given is whole groups of blocks."""

    @abstractmethod
    def find(self, x: torch.Tensor, weight: torch.Tensor | None) -> Parts:
        """The parts of blocks float32 [subs, sub_size, n], n a multiple of COLUMNS."""

    def search(self, blocks: torch.Tensor, weight: torch.Tensor | None = None) -> Parts:
        if weight is not None:
            weight = weight.expand(blocks.shape)
            weight = blocks_last(_whole(weight.float(), 1.0), self.sub_size)
        # float32 last: the narrower, the quicker to turn.
        x = blocks_last(_whole(blocks, 0.0), self.sub_size).float()
        parts = self.find(x, weight)
        return parts if parts.d.shape[0] == len(blocks) else parts.cut(len(blocks))

    def encode_all(self, blocks: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        if blocks.device.type != "cpu":
            return self.encode_tiles(blocks, weight, GPU_TILE // self.block_size)
        raw = blocks.contiguous().view(torch.uint8).numpy()
        processes = torch.get_num_threads()
        shares = tiles(len(blocks), (SHARE if processes > 1 else TILE) // self.block_size)
        tasks = [(self, raw[s], blocks.dtype, *_of_share(weight, s, len(blocks))) for s in shares]
        coded = np.empty((len(blocks), self.block_bytes), np.uint8)
        for share, found in zip(shares, parallel_map(_encode, tasks, processes), strict=True):
            coded[share] = found
        return torch.from_numpy(coded)


def _of_share(
    weight: torch.Tensor | None, share: slice, count: int
) -> tuple[np.ndarray | None, int]:
    """Of a weight that begins again all, and where in it the share begins; else a part."""
    if weight is None:
        return None, 0
    if len(weight) < count:
        return weight.float().numpy(), share.start
    return weight[share].float().numpy(), 0


def _encode(
    codec: SearchedCodec, raw: np.ndarray, dtype: torch.dtype, weight: np.ndarray | None, first: int
) -> np.ndarray:
    """In a process: numpy's arrays are quicker to send than torch's."""
    blocks = torch.from_numpy(raw).view(dtype)
    share = None if weight is None else torch.from_numpy(weight)
    with torch.inference_mode():
        coded = codec.encode_tiles(blocks, share, TILE // codec.block_size, first)
    found: np.ndarray = coded.numpy()
    return found


def _whole(blocks: torch.Tensor, fill: float) -> torch.Tensor:
    missing = -len(blocks) % COLUMNS
    if not missing:
        return blocks
    return torch.cat([blocks, blocks.new_full((missing, blocks.shape[1]), fill)])
