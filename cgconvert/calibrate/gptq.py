"""Rounding with error feedback: each column's error is made up for by the columns after it.

GPTQ (Frantar et al., 2023, arXiv 2210.17323) for block types. The scales of a block are searched
when its columns are reached, on weights that carry the errors of all columns before. Coordinate
descent on the same objective follows (as in QuantEase, Behdin et al., 2023, arXiv 2309.01885): each
code in turn takes its best value given all the others.

The objective of a matrix W [rows, columns] with inputs x is E|(W - Q) x|^2, the trace of
(W - Q) H (W - Q)^T with the Hessian H = E[x x^T]. Rows are independent of each other in it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from cgconvert.codecs.block_codec import BlockCodec, tiles
from cgconvert.codecs.block_layout import BlockParams

__all__ = ["DAMPING", "Hessian", "inverse_factor", "moments_dtype", "quantize_matrix"]

DAMPING = 0.02
"""Added to the Hessian's diagonal, as a share of its mean: it keeps the weights near the source's
in directions that no input had."""

ROWS = 1024
"""Rows in one matrix product of coordinate descent: of all rows the difference would be gigabytes.
"""

LARGEST_DOUBLE = 8192
"""Columns up to which sums are kept in float64; with more, memory is short."""

FACTOR_BLOCK = 2048
"""Columns of a block in `inverse_factor`."""


def moments_dtype(columns: int) -> torch.dtype:
    """The type in which sums of x x^T [columns, columns] are kept."""
    return torch.float64 if columns <= LARGEST_DOUBLE else torch.float32


@dataclass(frozen=True)
class Hessian:
    """E[x x^T] of a matrix's inputs, damped, and the factor of its inverse that GPTQ needs.

    `matrix` and `factor` are float32 [columns, columns]; `factor` is upper triangular,
    factor^T factor = matrix^-1.
    """

    matrix: torch.Tensor
    factor: torch.Tensor

    @classmethod
    def from_moments(
        cls, moments: torch.Tensor, damping: float = DAMPING, overwrite: bool = False
    ) -> Hessian:
        """The Hessian of sums of x x^T [columns, columns], which only count in relation to each
        other. With `overwrite` their memory is used for the result."""
        scale = moments.diagonal().mean().clamp(min=1e-30)
        damped = moments.div_(scale) if overwrite else moments / scale
        damped.diagonal().add_(damping)
        return cls(damped.float(), inverse_factor(damped).float())

    def solve(self, products: torch.Tensor) -> torch.Tensor:
        """The X [rows, columns] with X matrix = products."""
        return products @ self.factor.t() @ self.factor


def inverse_factor(matrix: torch.Tensor) -> torch.Tensor:
    """The upper triangular F with F^T F = matrix^-1, of a positive definite matrix [n, n].

    With matrix = U U^T, U upper triangular, F is the inverse of U. It needs the memory of one
    matrix: of 24576 columns each copy is gigabytes, and torch's own functions, one after the other,
    hold four. Only blocks go through them; the rest is matrix products.

    Raises torch.linalg.LinAlgError where the matrix is not positive definite.
    """
    f = matrix.clone()
    n = len(f)
    blocks = [slice(first, min(first + FACTOR_BLOCK, n)) for first in range(0, n, FACTOR_BLOCK)]
    for block in reversed(blocks):  # f becomes U, from its last columns on
        to, after = slice(0, block.stop), slice(block.stop, n)
        f[to, block].addmm_(f[to, after], f[block, after].t(), alpha=-1)
        corner = torch.linalg.cholesky(f[block, block].flip(0, 1)).flip(0, 1)
        above = slice(0, block.start)
        f[above, block] = torch.linalg.solve_triangular(
            corner.t(), f[above, block], upper=False, left=False
        )
        f[block, block] = corner
    f.triu_()
    for block in blocks:  # f becomes the inverse of U, from its first columns on
        corner = f[block, block]
        corner = torch.linalg.solve_triangular(corner, torch.eye(len(corner)).to(f), upper=True)
        above = slice(0, block.start)
        f[above, block] = f[above, above] @ (f[above, block] @ corner).neg_()
        f[block, block] = corner
    return f


def quantize_matrix(
    weight: torch.Tensor, hessian: Hessian, codec: BlockCodec, sweeps: int = 2
) -> torch.Tensor:
    """Quantize a matrix by GPTQ and `sweeps` of coordinate descent.

    Args:
        weight: float32 [rows, columns].
        hessian: Of the matrix's inputs.
        codec: The block type.
        sweeps: How often coordinate descent goes over all columns.

    Returns:
        The encoded rows, uint8 [rows, bytes of a row].

    Raises:
        InputError: A weight is not finite, or the rows do not divide into blocks.
    """
    row_bytes = codec.row_bytes(weight.shape)
    rounded = gptq(weight, hessian, codec)
    for _ in range(sweeps):
        coordinate_descent(weight, hessian, rounded)
    return rounded.pack().reshape(-1, row_bytes)


class RoundedMatrix:
    """A matrix while it is rounded: `values` float32 [rows, columns] are what `parts` decode to.

    There are parts for each block of columns, from the first on.
    """

    def __init__(self, weight: torch.Tensor, codec: BlockCodec) -> None:
        self.codec = codec
        self.values = torch.empty_like(weight)
        self.parts: list[BlockParams] = []

    def pack(self) -> torch.Tensor:
        """uint8 [rows, blocks, bytes of a block]."""
        return torch.stack([self.codec.pack(parts) for parts in self.parts], dim=1)


@dataclass
class _ColumnBlock:
    """The blocks of all rows in the same columns: how a weight becomes a code and a code a value.

    `steps` and `offsets` are those of `parts`, `slopes` the steps' reciprocals: float32
    [sub-blocks, rows].
    """

    codec: BlockCodec
    parts: BlockParams
    steps: torch.Tensor
    slopes: torch.Tensor
    offsets: torch.Tensor | None

    @classmethod
    def from_parts(cls, codec: BlockCodec, parts: BlockParams) -> _ColumnBlock:
        steps, offsets = parts.steps(), parts.offsets()
        slopes = torch.where(steps == 0, 0.0, steps.reciprocal())
        return cls(codec, parts, steps, slopes, offsets)

    def round(self, column: int, weights: torch.Tensor) -> torch.Tensor:
        """Round `weights` [rows] of one column of the block; its codes go into `parts`."""
        sub = column // self.codec.sub_block_size
        shifted = weights if self.offsets is None else weights + self.offsets[sub]
        codes = shifted * self.slopes[sub] + self.codec.zero_point
        codes = codes.round_().clamp_(0, self.codec.max_code)
        self.parts.codes[sub, column % self.codec.sub_block_size] = codes.byte()
        value = (codes - self.codec.zero_point).mul_(self.steps[sub])
        return value if self.offsets is None else value.sub_(self.offsets[sub])


def gptq(weight: torch.Tensor, hessian: Hessian, codec: BlockCodec) -> RoundedMatrix:
    """Round the columns from left to right; those to the right take up each column's error."""
    remaining, factor, size = weight.clone(), hessian.factor, codec.block_size
    importance = factor.diagonal().reciprocal().square()
    rounded = RoundedMatrix(weight, codec)
    for first in range(0, weight.shape[1], size):
        columns = slice(first, first + size)
        by_column = remaining[:, columns].t().contiguous()  # a column's rows lie together
        parts = codec.fit(remaining[:, columns].contiguous(), importance[columns])
        codes = parts.codes.clone(memory_format=torch.contiguous_format)
        block = _ColumnBlock.from_parts(codec, replace(parts, codes=codes))
        errors = torch.empty_like(by_column)
        inner = factor[columns, columns]
        for column in range(size):
            value = block.round(column, by_column[column])
            errors[column] = (by_column[column] - value) / inner[column, column]
            by_column[column + 1 :].addr_(inner[column, column + 1 :], errors[column], alpha=-1)
            rounded.values[:, first + column] = value
        remaining[:, first + size :].addmm_(errors.t(), factor[columns, first + size :], alpha=-1)
        rounded.parts.append(block.parts)
    return rounded


def coordinate_descent(weight: torch.Tensor, hessian: Hessian, rounded: RoundedMatrix) -> None:
    """Give each code in turn its best value, once; scales stay as they are."""
    size, matrix = rounded.codec.block_size, hessian.matrix
    gradient = torch.empty_like(weight)
    for rows in tiles(len(weight), ROWS):
        torch.mm(weight[rows] - rounded.values[rows], matrix, out=gradient[rows])
    for number, parts in enumerate(rounded.parts):
        columns = slice(number * size, (number + 1) * size)
        block = _ColumnBlock.from_parts(rounded.codec, parts)
        slopes = gradient[:, columns].t().contiguous()
        values = rounded.values[:, columns].t().contiguous()
        before, inner = values.clone(), matrix[columns, columns]
        for column in range(size):
            best = values[column] + slopes[column] / inner[column, column]
            value = block.round(column, best)
            slopes.addr_(inner[column], value - values[column], alpha=-1)
            values[column] = value
        gradient.addmm_((values - before).t(), matrix[columns], alpha=-1)
        rounded.values[:, columns] = values.t()
