"""Rounding with error feedback: each column's error is made up for by the columns after it.

GPTQ (Frantar et al., 2023, arXiv 2210.17323) into ggml's block types. A block's scales are searched
when its turn comes, on weights that carry the errors of all columns before. Coordinate descent on
the same objective follows (as in QuantEase, Behdin et al., 2023, arXiv 2309.01885): each code in
turn takes its best value given all others.

The objective of a matrix W [rows, columns] with inputs x is E|(W - Q) x|^2, the trace of
(W - Q) H (W - Q)^T with H = E[x x^T]; rows do not meet in it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from cgconvert.calibrate.triangular import inverse_factor
from cgconvert.codecs.block_codec import BlockCodec, tiles
from cgconvert.codecs.parts import Parts

__all__ = ["Hessian", "moments_dtype", "quantize"]

DAMPING = 0.02
"""Added to the diagonal, as a share of its mean: what no input ever had is not free to change."""


ROWS = 1024
"""Whose differences are multiplied at once."""

DOUBLE = 8192
"""Columns up to which sums are kept in float64; of more, memory is short."""


def moments_dtype(columns: int) -> torch.dtype:
    """Of sums of x x^T [columns, columns]."""
    return torch.float64 if columns <= DOUBLE else torch.float32


@dataclass(frozen=True)
class Hessian:
    """E[x x^T] of a matrix's inputs, damped, and what feedback needs of its inverse.

    `matrix` and `factor` are float32 [columns, columns]; `factor` is upper triangular,
    factor^T factor = matrix^-1.
    """

    matrix: torch.Tensor
    factor: torch.Tensor

    @classmethod
    def of(cls, moments: torch.Tensor, damping: float = DAMPING, scratch: bool = False) -> Hessian:
        """From sums of x x^T [columns, columns] of moments_dtype; only ratios matter. With
        `scratch` the sums are overwritten."""
        scale = moments.diagonal().mean().clamp(min=1e-30)
        damped = moments.div_(scale) if scratch else moments / scale
        damped.diagonal().add_(damping)
        return cls(damped.float(), inverse_factor(damped).float())

    def solve(self, wanted: torch.Tensor) -> torch.Tensor:
        """wanted [rows, columns] times the inverse of `matrix`."""
        return wanted @ self.factor.t() @ self.factor


def quantize(
    weight: torch.Tensor, hessian: Hessian, codec: BlockCodec, sweeps: int = 2
) -> torch.Tensor:
    """The coded rows, uint8 [rows, bytes of a row], of float32 [rows, columns].

    `sweeps` of coordinate descent follow the feedback.

    Raises InputError where a weight is not finite or the rows do not divide into blocks.
    """
    width = codec.row_bytes(weight.shape)
    rounded = _feed_back(weight, hessian, codec)
    for _ in range(sweeps):
        _descend(weight, hessian, rounded)
    return rounded.pack().reshape(-1, width)


class _Rounded:
    """A matrix on its way: values, and each block's parts, columns in memory first.

    `values` float32 [rows, columns] is what `parts` (one a block of columns) stand for.
    """

    def __init__(self, weight: torch.Tensor, codec: BlockCodec) -> None:
        self.codec = codec
        self.values = torch.empty_like(weight)
        self.parts: list[Parts] = []

    def pack(self) -> torch.Tensor:
        """uint8 [rows, blocks, bytes of a block]."""
        return torch.stack([self.codec.pack(parts) for parts in self.parts], dim=1)


@dataclass
class _Block:
    """One block of columns, its grid repeated for each column: float32 [columns, rows]."""

    codec: BlockCodec
    parts: Parts
    steps: torch.Tensor
    slopes: torch.Tensor
    offsets: torch.Tensor | None

    @classmethod
    def of(cls, codec: BlockCodec, parts: Parts) -> _Block:
        steps, offsets = parts.steps(), parts.offsets()
        slopes = torch.where(steps == 0, 0.0, steps.reciprocal())
        return cls(codec, parts, steps, slopes, offsets)

    def nearest(self, column: int, weights: torch.Tensor) -> torch.Tensor:
        """What `weights` [rows] become in a column of the block; its codes are kept."""
        sub = column // self.codec.sub_size
        moved = weights if self.offsets is None else weights + self.offsets[sub]
        codes = (moved * self.slopes[sub] + self.codec.zero).round_().clamp_(0, self.codec.top)
        self.parts.codes[sub, column % self.codec.sub_size] = codes.byte()
        value = (codes - self.codec.zero).mul_(self.steps[sub])
        return value if self.offsets is None else value.sub_(self.offsets[sub])


def _feed_back(weight: torch.Tensor, hessian: Hessian, codec: BlockCodec) -> _Rounded:
    left, factor, size = weight.clone(), hessian.factor, codec.block_size
    importance = factor.diagonal().reciprocal().square()
    rounded = _Rounded(weight, codec)
    for first in range(0, weight.shape[1], size):
        some = slice(first, first + size)
        here = left[:, some].t().contiguous()  # a column's rows lie together
        parts = codec.search(left[:, some].contiguous(), importance[some])
        block = _Block.of(codec, replace(parts, codes=parts.codes.clone()))
        errors = torch.empty_like(here)
        inner = factor[some, some]
        for column in range(size):
            value = block.nearest(column, here[column])
            errors[column] = (here[column] - value) / inner[column, column]
            here[column + 1 :].addr_(inner[column, column + 1 :], errors[column], alpha=-1)
            rounded.values[:, first + column] = value
        left[:, first + size :].addmm_(errors.t(), factor[some, first + size :], alpha=-1)
        rounded.parts.append(block.parts)
    return rounded


def _descend(weight: torch.Tensor, hessian: Hessian, rounded: _Rounded) -> None:
    """One sweep over all codes, scales as they are."""
    size, matrix = rounded.codec.block_size, hessian.matrix
    gradient = torch.empty_like(weight)
    for some in tiles(len(weight), ROWS):  # of a large matrix the difference would be gigabytes
        torch.mm(weight[some] - rounded.values[some], matrix, out=gradient[some])
    for number, parts in enumerate(rounded.parts):
        some = slice(number * size, (number + 1) * size)
        block = _Block.of(rounded.codec, parts)
        here, values = gradient[:, some].t().contiguous(), rounded.values[:, some].t().contiguous()
        before, inner = values.clone(), matrix[some, some]
        for column in range(size):
            wanted = values[column] + here[column] / inner[column, column]
            value = block.nearest(column, wanted)
            here.addr_(inner[column], value - values[column], alpha=-1)
            values[column] = value
        gradient.addmm_((values - before).t(), matrix[some], alpha=-1)
        rounded.values[:, some] = values.t()
