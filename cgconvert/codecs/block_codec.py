"""Codecs of quantized blocks: a layout, together with a rounding rule or a search.

A block does not depend on other blocks, so rows can be encoded in chunks of any size. The
arithmetic is that of ggml-quants.c: every operation is rounded to float32, and there is no fused
multiply-add, as in llama.cpp's x86 builds and in gguf-py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cgconvert.codecs.block_layout import BlockLayout, BlockParams, blocks_last
from cgconvert.codecs.encoding import Array
from cgconvert.codecs.search.least_squares import Search
from cgconvert.codecs.search.rounding import Rounding
from cgconvert.errors import InputError
from cgconvert.io.parallel import parallel_map
from cgconvert.lazy import torch

__all__ = ["BlockCodec", "tiles"]

TILE = 1 << 18
"""Weights that are rounded or decoded at once: 1 MB of float32, so that temporaries stay in a
core's cache."""

SEARCH_TILE = 1 << 19
"""Weights that are searched at once by a single CPU process: so many that arithmetic takes longer
than the calls of torch functions."""

GPU_TILE = 1 << 23
"""Weights that are searched at once on a GPU; a search needs about a hundred bytes of memory for
each."""

PROCESS_TILE = 1 << 18
"""Weights that are sent to a worker process at once: about ten milliseconds of work. A matrix of a
million weights gives work to four processes."""

BLOCK_GROUP = 64
"""The number of blocks that are searched together is padded to a multiple of this one. Then
torch.sum, which takes four vectors at a time, adds up every block in the same order, so the bytes
of a block do not depend on how many blocks are searched together."""


class BlockCodec(BlockLayout):
    """An encoding of matrices in quantized blocks.

    A subclass defines the layout of a block and has a rounding rule, a search or both. It has no
    state.

    The argument `importance` of its methods is how much each squared error counts, for example the
    mean square of the inputs that a column is multiplied with. Only ratios matter, and these may be
    from 1e-12 to 1e12.
    """

    @property
    def rounding(self) -> Rounding | None:
        """The rule for parameters if no importance is given; None if they are always searched."""
        return None

    @property
    def search(self) -> Search | None:
        """The search for parameters, if an importance is given or the codec has no rounding rule.

        None if it would be no better than the rule; an importance is then ignored.
        """
        return None

    def is_searched(self, has_importance: bool) -> bool:
        """Tell whether parameters come from the search rather than from the rounding rule."""
        return self.search is not None and (has_importance or self.rounding is None)

    def with_search(self) -> BlockCodec:
        """Return the codec of the same layout that calibration uses; by default this codec."""
        return self

    @property
    def label(self) -> str:
        """The type's name in the table of tensors of a verification report."""
        return self.name

    def fit(self, blocks: torch.Tensor, importance: torch.Tensor | None = None) -> BlockParams:
        """Quantize blocks, without packing them into bytes.

        Args:
            blocks: [n, block_size] of any floating type.
            importance: of a shape that expands to [n, block_size].

        Raises:
            InputError: a weight is not finite, and a search is used.
        """
        if self.search is None or not self.is_searched(importance is not None):
            assert self.rounding is not None, f"{self.name} has neither a rule nor a search"
            return self.rounding.fit(blocks.float(), self)
        if importance is not None:
            importance = importance.expand(blocks.shape).float()
            importance = blocks_last(_pad_to_group(importance, 1.0), self.sub_block_size)
        # Converted to float32 after transposing, because narrower numbers are faster to transpose.
        x = blocks_last(_pad_to_group(blocks, 0.0), self.sub_block_size).float()
        return self.search.fit(x, importance, self).first(len(blocks))

    def arrays(self, shape: Sequence[int]) -> tuple[Array, ...]:
        """List the single array of packed blocks; its shape is the tensor's, as GGUF records it."""
        return (Array("", tuple(shape), self.name, self.row_bytes(shape)),)

    def row_bytes(self, shape: Sequence[int]) -> int:
        """Return the bytes of a packed row; raises InputError if rows are not whole blocks."""
        if len(shape) < 2 or shape[-1] % self.block_size:
            raise InputError(
                f"a tensor {list(shape)} cannot be {self.name}: its rows must be a multiple of "
                f"{self.block_size} long; choose F16"
            )
        return math.prod(shape[1:]) // self.block_size * self.block_bytes

    def stored_bytes(self, shape: Sequence[int]) -> int:
        """Return the bytes of a matrix in a file; raises InputError as `arrays` does."""
        return shape[0] * sum(array.row_bytes for array in self.arrays(shape))

    def encode(
        self, rows: torch.Tensor, importance: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Encode rows into the arrays that a file stores; arguments as for `encode_rows`."""
        return (self.encode_rows(rows, importance),)

    def encode_rows(
        self, rows: torch.Tensor, importance: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Encode rows into packed blocks.

        Args:
            rows: [n, ...] of any floating type.
            importance: of a shape that expands to that of `rows`.

        Returns:
            uint8 [n, bytes of a row], on the device of `rows`.

        Raises:
            InputError: a value is not finite, or so large that a scale overflows float16.
        """
        row_bytes = self.row_bytes(rows.shape)
        blocks = rows.reshape(-1, self.block_size)
        is_searched = self.is_searched(importance is not None)
        if not is_searched:
            importance = None
        if importance is not None:
            # Expanded only over its own axes, because usually all rows share one importance.
            is_shared = importance.dim() < rows.dim()
            shape = rows.shape[-importance.dim() :] if is_shared else rows.shape
            importance = importance.expand(shape).reshape(-1, self.block_size)
        if is_searched and blocks.device.type == "cpu":
            return self._search_in_processes(blocks, importance).reshape(-1, row_bytes)
        tile_size = (GPU_TILE if is_searched else TILE) // self.block_size
        packed = blocks.new_empty((len(blocks), self.block_bytes), dtype=torch.uint8)
        for tile in tiles(len(blocks), tile_size):
            tile_blocks = blocks[tile]
            tile_importance = _repeat_importance(importance, tile.start, len(tile_blocks))
            packed[tile] = self.pack(self.fit(tile_blocks, tile_importance))
        return packed.reshape(-1, row_bytes)

    def decode(self, arrays: Sequence[torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
        """Decode the arrays of a file to weights, float32 of `shape`."""
        (packed,) = arrays
        return self.decode_rows(packed, shape)

    def decode_rows(self, packed: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Decode packed blocks, uint8 of any shape, to weights, float32 of `shape`."""
        blocks = packed.reshape(-1, self.block_bytes)
        weights = torch.empty((len(blocks), self.block_size), device=packed.device)
        for tile in tiles(len(blocks), TILE // self.block_size):
            weights[tile] = self.values(self.unpack(blocks[tile]))
        return weights.reshape(*shape)

    def split_rows(self, packed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Distribute packed rows, uint8 [n, bytes of a row], over the arrays that a file stores."""
        return (packed,)

    def unpack_arrays(self, arrays: Sequence[torch.Tensor]) -> BlockParams:
        """Read the parameters of all blocks from the arrays of a file, row after row."""
        (packed,) = arrays
        return self.unpack(packed.reshape(-1, self.block_bytes))

    def _search_in_processes(
        self, blocks: torch.Tensor, importance: torch.Tensor | None
    ) -> torch.Tensor:
        """Search and pack blocks [n, block_size] in worker processes, each with a single thread.

        `importance` is [m, block_size]; it is repeated if m is less than n.
        """
        raw = blocks.contiguous().view(torch.uint8).numpy()  # numpy has no bfloat16
        processes = torch.get_num_threads()
        tile_weights = PROCESS_TILE if processes > 1 else SEARCH_TILE
        block_tiles = tiles(len(blocks), tile_weights // self.block_size)
        importance_array = None if importance is None else importance.float().numpy()
        tasks = []
        for tile in block_tiles:
            if importance_array is None or len(importance_array) < len(blocks):
                tasks.append((self, raw[tile], blocks.dtype, importance_array, tile.start))
            else:
                tasks.append((self, raw[tile], blocks.dtype, importance_array[tile], 0))
        packed = np.empty((len(blocks), self.block_bytes), np.uint8)
        for tile, tile_bytes in zip(
            block_tiles, parallel_map(_search_tile, tasks, processes), strict=True
        ):
            packed[tile] = tile_bytes
        return torch.from_numpy(packed)


def tiles(count: int, tile_size: int) -> list[slice]:
    """Cut the range from 0 to `count` into slices of `tile_size`, or of 1 if that is 0."""
    tile_size = max(1, tile_size)
    return [slice(start, start + tile_size) for start in range(0, count, tile_size)]


def _repeat_importance(
    importance: torch.Tensor | None, start: int, count: int
) -> torch.Tensor | None:
    """Return the importance of `count` blocks from block `start` on, float32 [count, block_size].

    `importance` [m, block_size] belongs to the first m blocks and is repeated for the next ones,
    because usually all rows share it.
    """
    if importance is None:
        return None
    index = torch.arange(start, start + count, device=importance.device)
    return importance[index % len(importance)].float()


def _search_tile(
    codec: BlockCodec,
    raw: np.ndarray,
    dtype: torch.dtype,
    importance: np.ndarray | None,
    start: int,
) -> np.ndarray:
    """Search and pack a tile of blocks in a worker process.

    Arguments and result are numpy arrays, because these are faster to send than torch tensors.

    Args:
        codec: the codec of the blocks.
        raw: the bytes of the blocks, uint8 [n, bytes of block_size weights].
        dtype: the type of the weights.
        importance: as for `_repeat_importance`.
        start: the number of the tile's first block, for `_repeat_importance`.
    """
    blocks = torch.from_numpy(raw).view(dtype)
    with torch.inference_mode():
        tile_importance = (
            None
            if importance is None
            else _repeat_importance(torch.from_numpy(importance), start, len(blocks))
        )
        packed: np.ndarray = codec.pack(codec.fit(blocks, tile_importance)).numpy()
    return packed


def _pad_to_group(blocks: torch.Tensor, fill: float) -> torch.Tensor:
    """Append blocks of `fill` to blocks [n, block_size], up to a multiple of BLOCK_GROUP."""
    missing = -len(blocks) % BLOCK_GROUP
    if not missing:
        return blocks
    return torch.cat([blocks, blocks.new_full((missing, blocks.shape[1]), fill)])
