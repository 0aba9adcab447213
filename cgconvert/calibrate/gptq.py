"""GPTQ and coordinate descent for matrices in quantized blocks.

GPTQ (Frantar et al., 2023, arXiv 2210.17323) rounds a matrix column by column; later columns are
changed so that they compensate the error of each rounded column. The scales of a block are searched
when GPTQ reaches its columns, so they are fitted to the changed weights. Then coordinate descent
minimizes the same objective (as in QuantEase, Behdin et al., 2023, arXiv 2309.01885): each code in
turn is set to its best value while all other codes stay.

The objective for a matrix W [rows, columns] with inputs x and its quantized form Q is
E|(W - Q) x|^2. This is the trace of (W - Q) H (W - Q)^T with the Hessian H = E[x x^T], so each row
is a problem of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cgconvert.codecs.block_codec import BlockCodec, tiles
from cgconvert.codecs.block_layout import BlockParams
from cgconvert.lazy import torch

__all__ = [
    "DAMPING",
    "ColumnBlock",
    "Hessian",
    "inverse_cholesky",
    "moments_dtype",
    "quantize_matrix",
]

DAMPING = 0.02
"""The number that is added to the diagonal of the Hessian, as a fraction of the diagonal's mean. In
directions that no input has, it keeps the weights near the source's."""

ROWS = 1024
"""The rows of one matrix product in coordinate descent. For all rows at once, the temporary W - Q
would take gigabytes."""

MAX_FLOAT64_COLUMNS = 8192
"""The largest number of columns for which sums of x x^T are float64; for more, memory is too small.
"""

FACTOR_BLOCK = 2048
"""The rows and columns of a block in `inverse_cholesky`."""


def moments_dtype(columns: int) -> torch.dtype:
    """Return the type of sums of x x^T [columns, columns]."""
    return torch.float64 if columns <= MAX_FLOAT64_COLUMNS else torch.float32


@dataclass(frozen=True)
class Hessian:
    """The damped Hessian of a matrix's inputs, and the Cholesky factor of its inverse.

    Attributes:
        matrix: float32 [columns, columns], E[x x^T] divided by the mean of its diagonal, plus
            DAMPING on the diagonal.
        factor: float32 [columns, columns], upper triangular; factor^T factor = matrix^-1.
    """

    matrix: torch.Tensor
    factor: torch.Tensor

    @classmethod
    def from_moments(
        cls, moments: torch.Tensor, damping: float = DAMPING, overwrite: bool = False
    ) -> Hessian:
        """Make the Hessian from sums of x x^T.

        Args:
            moments: The sums, [columns, columns]. Their scale does not matter.
            damping: The fraction of the diagonal's mean that is added to the diagonal.
            overwrite: Whether `moments` may be overwritten, which saves memory.
        """
        mean = moments.diagonal().mean().clamp(min=1e-30)
        damped = moments.div_(mean) if overwrite else moments / mean
        damped.diagonal().add_(damping)
        return cls(damped.float(), inverse_cholesky(damped).float())

    def to(self, device: torch.device) -> Hessian:
        """Return the same Hessian on a device."""
        return Hessian(self.matrix.to(device), self.factor.to(device))

    def solve(self, products: torch.Tensor) -> torch.Tensor:
        """Solve X matrix = products for X, [rows, columns] as `products`."""
        return products @ self.factor.t() @ self.factor


def inverse_cholesky(matrix: torch.Tensor) -> torch.Tensor:
    """Compute the upper Cholesky factor F of the inverse: F^T F = matrix^-1.

    If matrix = U U^T with U upper triangular, F is the inverse of U. Both are computed in one copy
    of the matrix, block by block: torch's functions factor single blocks, and matrix products do
    the rest. For the full matrix, torch's functions would need four copies, and with 24576 columns
    each takes gigabytes.

    Args:
        matrix: positive definite, [n, n].

    Raises:
        torch.linalg.LinAlgError: the matrix is not positive definite.
    """
    factor = matrix.clone()
    n = len(factor)
    blocks = [slice(start, min(start + FACTOR_BLOCK, n)) for start in range(0, n, FACTOR_BLOCK)]
    for block in reversed(blocks):  # the factor becomes U, from the last columns to the first
        above, leading, trailing = slice(block.start), slice(block.stop), slice(block.stop, n)
        factor[leading, block].addmm_(
            factor[leading, trailing], factor[block, trailing].t(), alpha=-1
        )
        diagonal = torch.linalg.cholesky(factor[block, block].flip(0, 1)).flip(0, 1)
        factor[above, block] = torch.linalg.solve_triangular(
            diagonal.t(), factor[above, block], upper=False, left=False
        )
        factor[block, block] = diagonal
    factor.triu_()
    for block in blocks:  # the factor becomes the inverse of U, from the first columns to the last
        above, diagonal = slice(block.start), factor[block, block]
        identity = torch.eye(len(diagonal)).to(factor)
        diagonal = torch.linalg.solve_triangular(diagonal, identity, upper=True)
        factor[above, block] = factor[above, above] @ (factor[above, block] @ diagonal).neg_()
        factor[block, block] = diagonal
    return factor


def quantize_matrix(
    weight: torch.Tensor, hessian: Hessian, codec: BlockCodec, sweeps: int = 2
) -> torch.Tensor:
    """Quantize a matrix by GPTQ and coordinate descent.

    Args:
        weight: float32 [rows, columns].
        hessian: The Hessian of the matrix's inputs.
        codec: The block type.
        sweeps: The number of times that coordinate descent goes over all columns.

    Returns:
        The packed rows, uint8 [rows, bytes of a row].

    Raises:
        InputError: A weight is not finite, or the rows are not whole blocks.
    """
    row_bytes = codec.row_bytes(weight.shape)
    rounded = gptq(weight, hessian, codec)
    for _ in range(sweeps):
        coordinate_descent(weight, hessian, rounded)
    return rounded.pack().reshape(-1, row_bytes)


class RoundedMatrix:
    """A matrix whose codes can still change.

    Attributes:
        codec: the block type.
        values: the decoded weights, float32 [rows, columns].
        params: the parameters of the blocks of all rows, for each block of columns from the first
            to the last.
    """

    def __init__(self, weight: torch.Tensor, codec: BlockCodec) -> None:
        self.codec = codec
        self.values = torch.empty_like(weight)
        self.params: list[BlockParams] = []

    def pack(self) -> torch.Tensor:
        """Pack the blocks into bytes, uint8 [rows, blocks of a row, bytes of a block]."""
        return torch.stack([self.codec.pack(params) for params in self.params], dim=1)


@dataclass
class ColumnBlock:
    """The blocks of all rows that lie in the same columns, with their steps and offsets.

    Attributes:
        codec: the block type.
        params: the parameters of the blocks, one for each row.
        steps: the steps of `params`, float32 [sub-blocks, rows].
        inverse_steps: 1 / steps, or 0 for a step of 0, float32 [sub-blocks, rows].
        offsets: the offsets of `params`, float32 [sub-blocks, rows]; None if there are none.
    """

    codec: BlockCodec
    params: BlockParams
    steps: torch.Tensor
    inverse_steps: torch.Tensor
    offsets: torch.Tensor | None

    @classmethod
    def from_params(cls, codec: BlockCodec, params: BlockParams) -> ColumnBlock:
        steps, offsets = params.steps(), params.offsets()
        inverse_steps = torch.where(steps == 0, 0.0, steps.reciprocal())
        return cls(codec, params, steps, inverse_steps, offsets)

    def repeated(self, times: int) -> ColumnBlock:
        """Return the blocks of these rows, one set behind the other so many times."""
        sub_blocks = (self.steps, self.inverse_steps, self.offsets)
        steps, inverse_steps, offsets = (x if x is None else x.repeat(1, times) for x in sub_blocks)
        assert steps is not None
        assert inverse_steps is not None
        params = replace(self.params, codes=self.params.codes.repeat(1, 1, times))
        return ColumnBlock(self.codec, params, steps, inverse_steps, offsets)

    def round(self, column: int, weights: torch.Tensor) -> torch.Tensor:
        """Round the weights [rows] of a column, and write their codes into `params`.

        `column` counts from the first column of the block. Returns the decoded weights, [rows].
        """
        sub = column // self.codec.sub_block_size
        shifted = weights if self.offsets is None else weights + self.offsets[sub]
        codes = shifted * self.inverse_steps[sub] + self.codec.zero_point
        codes = codes.round_().clamp_(0, self.codec.max_code)
        self.params.codes[sub, column % self.codec.sub_block_size] = codes.byte()
        value = (codes - self.codec.zero_point).mul_(self.steps[sub])
        return value if self.offsets is None else value.sub_(self.offsets[sub])


def gptq(weight: torch.Tensor, hessian: Hessian, codec: BlockCodec) -> RoundedMatrix:
    """Round the columns of a matrix from left to right by GPTQ; arguments as for `quantize_matrix`.

    The error of each column is compensated by changes of the columns to its right.
    """
    changed_weight, factor, size = weight.clone(), hessian.factor, codec.block_size
    # The objective grows by (error / factor[j, j])^2 if column j is rounded with this error.
    importance = factor.diagonal().reciprocal().square()
    rounded = RoundedMatrix(weight, codec)
    for start in range(0, weight.shape[1], size):
        columns = slice(start, start + size)
        transposed = changed_weight[:, columns].t().contiguous()  # [size, rows]
        params = codec.fit(changed_weight[:, columns].contiguous(), importance[columns])
        codes = params.codes.clone(memory_format=torch.contiguous_format)
        block = ColumnBlock.from_params(codec, replace(params, codes=codes))
        errors = torch.empty_like(transposed)
        block_factor = factor[columns, columns]
        for column in range(size):
            value = block.round(column, transposed[column])
            errors[column] = (transposed[column] - value) / block_factor[column, column]
            transposed[column + 1 :].addr_(
                block_factor[column, column + 1 :], errors[column], alpha=-1
            )
            rounded.values[:, start + column] = value
        changed_weight[:, start + size :].addmm_(
            errors.t(), factor[columns, start + size :], alpha=-1
        )
        rounded.params.append(block.params)
    return rounded


def coordinate_descent(weight: torch.Tensor, hessian: Hessian, rounded: RoundedMatrix) -> None:
    """Set each code of `rounded` in turn to its best value, in one sweep; scales stay.

    Args:
        weight: The matrix to approximate, float32 [rows, columns].
        hessian: The Hessian of the matrix's inputs.
        rounded: The quantized matrix, which is changed in place.
    """
    size, matrix = rounded.codec.block_size, hessian.matrix
    # (W - Q) H, which is the gradient of the objective by Q except for the factor -2.
    gradient = torch.empty_like(weight)
    for rows in tiles(len(weight), ROWS):
        torch.mm(weight[rows] - rounded.values[rows], matrix, out=gradient[rows])
    for index, params in enumerate(rounded.params):
        columns = slice(index * size, (index + 1) * size)
        block = ColumnBlock.from_params(rounded.codec, params)
        block_gradient = gradient[:, columns].t().contiguous()
        values = rounded.values[:, columns].t().contiguous()
        old_values, block_matrix = values.clone(), matrix[columns, columns]
        for column in range(size):
            best = values[column] + block_gradient[column] / block_matrix[column, column]
            value = block.round(column, best)
            block_gradient.addr_(block_matrix[column], value - values[column], alpha=-1)
            values[column] = value
        gradient.addmm_((values - old_values).t(), matrix[columns], alpha=-1)
        rounded.values[:, columns] = values.t()
