"""Lazy tensors of a model with a LoRA adapter merged into it: W + scaling * (B @ A), in float32.

The product is computed in tiles of a fixed grid, so that its numbers do not depend on the rows that
are asked for. Kernels of matrix products add along the rank in one order for every element, except
where there are few rows or columns: with MKL, with AVX2 and AVX-512, on 1 to 16 threads and with
ranks from 1 to 2048, tiles of 256 and more gave the numbers of the whole product bit for bit, and
tiles of less than 16 rows did not. So the result is that of peft's merge in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cgconvert.lazy import torch
from cgconvert.model.dtype import FLOAT32, DType
from cgconvert.model.tensor import ALL, LazyTensor

__all__ = ["TILE", "LowRankUpdate", "ScaledSum"]

TILE = 1024
"""Rows and columns of a tile. The last tile of each axis also takes what is left, if less: so a
matrix of less than twice as many rows and columns is computed whole, as peft does."""


@dataclass(frozen=True)
class LowRankUpdate(LazyTensor):
    """A matrix with scaling * (left @ right) added to it in float32.

    Attributes:
        base: The matrix.
        left: The product's left factor, [out, rank]: lora_B.
        right: The product's right factor, [rank, in]: lora_A.
        scaling: The number that the product is multiplied with.
        is_transposed: Whether the transposed product is added, as peft does to embeddings.
    """

    base: LazyTensor
    left: LazyTensor
    right: LazyTensor
    scaling: float
    is_transposed: bool = False

    @property
    def parents(self) -> tuple[LazyTensor, ...]:
        return (self.base, self.left, self.right)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.base.shape

    @property
    def dtype(self) -> DType:  # type: ignore[override]
        return FLOAT32

    @property
    def is_strided(self) -> bool:
        return self.base.is_strided

    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        merged = self.base.read(rows, cols).float()
        row_range, col_range = (
            range(*s.indices(size)) for s, size in zip((rows, cols), self.shape, strict=True)
        )
        if self.is_transposed:
            self._add_product(merged.T, col_range, row_range)
        else:
            self._add_product(merged, row_range, col_range)
        return merged

    def _add_product(self, merged: torch.Tensor, rows: range, cols: range) -> None:
        """Add the product's elements [rows, cols] to `merged`, in place and tile by tile."""
        height, width = self.left.shape[0], self.right.shape[1]
        for col_tile in _tiles(cols, width):
            right = self.right.read(ALL, col_tile).float()
            for row_tile in _tiles(rows, height):
                product = self.left.read(row_tile).float() @ right
                tile_rows, tile_cols = _overlap(rows, row_tile), _overlap(cols, col_tile)
                part = product[
                    tile_rows.start - row_tile.start : tile_rows.stop - row_tile.start,
                    tile_cols.start - col_tile.start : tile_cols.stop - col_tile.start,
                ]
                merged[
                    tile_rows.start - rows.start : tile_rows.stop - rows.start,
                    tile_cols.start - cols.start : tile_cols.stop - cols.start,
                ] += part * self.scaling


@dataclass(frozen=True)
class ScaledSum(LazyTensor):
    """A tensor with scaling * addend added to it in float32: a bias with that of lora_B."""

    base: LazyTensor
    addend: LazyTensor
    scaling: float

    @property
    def parents(self) -> tuple[LazyTensor, ...]:
        return (self.base, self.addend)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.base.shape

    @property
    def dtype(self) -> DType:  # type: ignore[override]
        return FLOAT32

    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        addend = self.addend.read(rows, cols).float() * self.scaling
        return self.base.read(rows, cols).float() + addend


def _tiles(needed: range, size: int) -> Iterator[slice]:
    """Yield the tiles of an axis of `size` elements that have some of the `needed` ones."""
    last = max(size // TILE - 1, 0)
    if needed:
        first_tile, last_tile = (min(i // TILE, last) for i in (needed.start, needed.stop - 1))
        for tile in range(first_tile, last_tile + 1):
            yield slice(tile * TILE, size if tile == last else (tile + 1) * TILE)


def _overlap(needed: range, tile: slice) -> range:
    """The elements of a tile that are needed."""
    return range(max(needed.start, tile.start), min(needed.stop, tile.stop))
