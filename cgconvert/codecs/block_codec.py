"""Codecs of quantized blocks: a layout, with a rule or a search for its parameters.

A block depends on nothing outside it, so rows can be encoded in any chunks. The arithmetic is that
of ggml-quants.c in float32, one rounding an operation and no fused multiply-add, which is what
llama.cpp's x86 builds and gguf-py do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from cgconvert.codecs.block_layout import BlockLayout, BlockParams, blocks_last
from cgconvert.codecs.encoding import Array
from cgconvert.codecs.search.rounding import Rounding
from cgconvert.codecs.search.strategy import Search
from cgconvert.errors import InputError
from cgconvert.io.parallel import parallel_map

__all__ = ["BlockCodec", "tiles"]

TILE = 1 << 18
"""Weights rounded or decoded at once: 1 MB of float32, so that temporaries stay in a core's cache.
"""

SEARCH_TILE = 1 << 19
"""Weights searched at once on a CPU: enough that the work on sub-blocks is more than its calls."""

GPU_TILE = 1 << 23
"""The same on a GPU, where it bounds memory: some hundred bytes a weight."""

SHARE = 1 << 18
"""Weights that are sent to a process at once: some ten milliseconds of work, and of a matrix of a
million weights a share for each of four."""

GROUP = 64
"""Blocks are searched in whole groups of so many. Within them torch.sum adds every column in the
same order (it takes four vectors at a time), so a block's bytes do not depend on the others'."""


class BlockCodec(BlockLayout):
    """An Encoding of matrices in quantized blocks.

    A subclass is a layout and names a rounding rule, a search or both; it has no state.
    """

    @property
    def rounding(self) -> Rounding | None:
        """The rule for parameters where no importance is given; None: they are always searched."""
        return None

    @property
    def search(self) -> Search | None:
        """The search for parameters where there is no rule or an importance is given.

        None where a search has nothing to gain.
        """
        return None

    def is_searched(self, weighted: bool) -> bool:
        """Whether parameters come from the search, with or without an importance."""
        return self.search is not None and (weighted or self.rounding is None)

    def with_search(self) -> BlockCodec:
        """The codec that calibration rounds into; by default this one."""
        return self

    @property
    def label(self) -> str:
        """The type as a report's table of tensors calls it."""
        return self.name

    def fit(self, blocks: torch.Tensor, weight: torch.Tensor | None = None) -> BlockParams:
        """The parameters of blocks [n, block_size] of any floating type.

        `weight`, of a shape that expands to the blocks', is how much each squared error counts,
        such as the mean square of the input that a column meets. Only ratios matter, from 1e-12 to
        1e12.

        Raises InputError where a search meets a weight that is not finite.
        """
        if self.search is None or not self.is_searched(weight is not None):
            assert self.rounding is not None, f"{self.name} has neither a rule nor a search"
            return self.rounding.fit(blocks.float(), self)
        if weight is not None:
            weight = weight.expand(blocks.shape).float()
            weight = blocks_last(_whole_groups(weight, 1.0), self.sub_block_size)
        # float32 last: narrower numbers are quicker to transpose.
        x = blocks_last(_whole_groups(blocks, 0.0), self.sub_block_size).float()
        return self.search.fit(x, weight, self).first(len(blocks))

    def arrays(self, shape: Sequence[int]) -> tuple[Array, ...]:
        """One array, of the tensor's own shape as GGUF records it."""
        return (Array("", tuple(shape), self.name, self.row_bytes(shape)),)

    def row_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of one packed row. Raises InputError where the rows do not divide into blocks."""
        if len(shape) < 2 or shape[-1] % self.block_size:
            raise InputError(
                f"a tensor {list(shape)} cannot be {self.name}: its rows must be a multiple of "
                f"{self.block_size} long; choose F16"
            )
        return math.prod(shape[1:]) // self.block_size * self.block_bytes

    def stored_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a matrix in a file. Raises InputError as `arrays`."""
        return shape[0] * sum(array.row_bytes for array in self.arrays(shape))

    def encode(
        self, rows: torch.Tensor, weight: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """The arrays that a file stores for rows; see `encode_rows`."""
        return (self.encode_rows(rows, weight),)

    def encode_rows(self, rows: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        """The packed blocks of rows, one after the other.

        Args:
            rows: [n, ...] of any floating type.
            weight: how much each squared error counts, of a shape that expands to the rows'; only
                ratios matter.

        Returns:
            uint8 [n, bytes of a row], on the device of `rows`.

        Raises:
            InputError: a value is not finite, or so large that a scale overflows float16.
        """
        width = self.row_bytes(rows.shape)
        blocks = rows.reshape(-1, self.block_size)
        searched = self.is_searched(weight is not None)
        if not searched:
            weight = None
        if weight is not None:
            every_row = rows.shape[-weight.dim() :] if weight.dim() < rows.dim() else rows.shape
            weight = weight.expand(every_row).reshape(-1, self.block_size)
        if searched and blocks.device.type == "cpu":
            return self._search_in_processes(blocks, weight).reshape(-1, width)
        tile = (GPU_TILE if searched else TILE) // self.block_size
        packed = blocks.new_empty((len(blocks), self.block_bytes), dtype=torch.uint8)
        for part in tiles(len(blocks), tile):
            tile_blocks = blocks[part]
            tile_weight = _repeated(weight, part.start, len(tile_blocks))
            packed[part] = self.pack(self.fit(tile_blocks, tile_weight))
        return packed.reshape(-1, width)

    def decode(self, arrays: Sequence[torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
        """The weights, float32 of `shape`, that the arrays of a file stand for."""
        (packed,) = arrays
        return self.decode_rows(packed, shape)

    def decode_rows(self, packed: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """The weights, float32 of `shape`, that packed blocks uint8 of any shape stand for."""
        blocks = packed.reshape(-1, self.block_bytes)
        weights = torch.empty((len(blocks), self.block_size), device=packed.device)
        for tile in tiles(len(blocks), TILE // self.block_size):
            weights[tile] = self.values(self.unpack(blocks[tile]))
        return weights.reshape(*shape)

    def split_rows(self, packed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The arrays that a file stores for packed rows uint8 [n, bytes of a row]."""
        return (packed,)

    def unpack_arrays(self, arrays: Sequence[torch.Tensor]) -> BlockParams:
        """The parameters in the arrays of a file, row after row."""
        (packed,) = arrays
        return self.unpack(packed.reshape(-1, self.block_bytes))

    def _search_in_processes(
        self, blocks: torch.Tensor, weight: torch.Tensor | None
    ) -> torch.Tensor:
        """Packed blocks. Each tile is searched on one thread; parallelism is by process."""
        raw = blocks.contiguous().view(torch.uint8).numpy()  # numpy has no bfloat16
        processes = torch.get_num_threads()
        tile = SHARE if processes > 1 else SEARCH_TILE
        parts = tiles(len(blocks), tile // self.block_size)
        every_weight = None if weight is None else weight.float().numpy()
        tasks = []
        for part in parts:
            if every_weight is None or len(every_weight) < len(blocks):
                tasks.append((self, raw[part], blocks.dtype, every_weight, part.start))
            else:
                tasks.append((self, raw[part], blocks.dtype, every_weight[part], 0))
        packed = np.empty((len(blocks), self.block_bytes), np.uint8)
        for part, tile_bytes in zip(
            parts, parallel_map(_search_tile, tasks, processes), strict=True
        ):
            packed[part] = tile_bytes
        return torch.from_numpy(packed)


def tiles(count: int, step: int) -> list[slice]:
    """0 to `count` in slices of at most `step`, and 1 at least."""
    step = max(1, step)
    return [slice(first, first + step) for first in range(0, count, step)]


def _repeated(weight: torch.Tensor | None, first: int, count: int) -> torch.Tensor | None:
    """The weights of `count` blocks from block `first` on.

    `weight` [m, block_size] begins again where it ends, since most rows have the same.
    """
    if weight is None:
        return None
    index = torch.arange(first, first + count, device=weight.device)
    return weight[index % len(weight)].float()


def _search_tile(
    codec: BlockCodec, raw: np.ndarray, dtype: torch.dtype, weight: np.ndarray | None, first: int
) -> np.ndarray:
    """Packed blocks, in a process; numpy's arrays are quicker to send than torch's."""
    blocks = torch.from_numpy(raw).view(dtype)
    with torch.inference_mode():
        share = None if weight is None else _repeated(torch.from_numpy(weight), first, len(blocks))
        packed: np.ndarray = codec.pack(codec.fit(blocks, share)).numpy()
    return packed


def _whole_groups(blocks: torch.Tensor, fill: float) -> torch.Tensor:
    """Blocks [n, block_size], with blocks of `fill` behind them up to a multiple of GROUP."""
    missing = -len(blocks) % GROUP
    if not missing:
        return blocks
    return torch.cat([blocks, blocks.new_full((missing, blocks.shape[1]), fill)])
