"""What a text says of a matrix: sums over positions to fit it to, and positions to judge it by.

Two models run on the same text, the source and the one quantized so far. x are the inputs that a
matrix W meets in the source, y those that its quantized form Q meets.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import torch

from cgconvert.calibrate.gptq import DAMPING, Hessian, moments_dtype
from cgconvert.model.device import CPU

__all__ = [
    "AcceptanceTest",
    "FisherTest",
    "InputStatistics",
    "ValidationPositions",
    "second_moments",
]

STRIPES, NARROWEST = 8, 256
"""A symmetric matrix of sums is computed in so many stripes, each of so many columns at least."""


class InputStatistics:
    """Sums over positions that a matrix [rows, columns] is fitted to.

    `moments` [columns, columns] is the sum of y y^T. `cross` is the sum of x y^T, which serves
    several matrices of the same inputs; with `rows` it is the sum of W x y^T [rows, columns], for
    one matrix whose outputs are narrower than its inputs.
    """

    def __init__(self, columns: int, rows: int | None = None, device: torch.device = CPU) -> None:
        dtype, height = moments_dtype(columns), columns if rows is None else rows
        self.moments = torch.zeros(columns, columns, dtype=dtype, device=device)
        self.cross = torch.zeros(height, columns, dtype=dtype, device=device)
        self.source_sum = torch.zeros(height, dtype=torch.float64, device=device)
        self.quantized_sum = torch.zeros(columns, dtype=torch.float64, device=device)
        self.sums_outputs, self.count = rows is not None, 0

    def add(self, source: torch.Tensor, quantized: torch.Tensor) -> None:
        """Add positions: `source` [n, columns] are x, or W x [n, rows]; `quantized` are y."""
        _add_upper(self.moments, quantized)
        _add_product(self.cross, source, quantized)
        self.source_sum += source.sum(0)
        self.quantized_sum += quantized.sum(0)
        self.count += len(source)

    @cached_property
    def hessian(self) -> Hessian:
        """The Hessian of y. It uses up `moments`."""
        _mirror(self.moments)
        self.scale = float(self.moments.diagonal().mean().clamp(min=1e-30))
        return Hessian.from_moments(self.moments, overwrite=True)

    def target(self, weight: torch.Tensor) -> torch.Tensor:
        """The matrix [rows, columns] whose outputs on y are nearest to those of `weight` on x.

        It is W E[x y^T] E[y y^T]^-1. Where outputs are summed it can be had once: `cross` is used
        up.
        """
        hessian = self.hessian
        if self.sums_outputs:
            products, self.cross = self.cross, torch.empty(0)
        else:
            products = weight.to(self.cross.dtype) @ self.cross
        products = products.div_(self.scale).float().add_(weight, alpha=DAMPING)
        return hessian.solve(products)

    def bias_change(self, weight: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
        """What to add to a bias so that the mean output stays: E[W x - Q y], float32 [rows]."""
        source = self.source_sum if self.sums_outputs else weight.double() @ self.source_sum
        return ((source - quantized.double() @ self.quantized_sum) / self.count).float()


class AcceptanceTest(Protocol):
    """Judges quantized forms of a matrix on windows that took part in nothing else."""

    def errors(self, weight: torch.Tensor, candidates: Sequence[torch.Tensor]) -> list[float]:
        """The summed squared error of each candidate Q [rows, columns]: sum |W x - Q y|^2."""


class ValidationPositions:
    """An AcceptanceTest on pairs of x (W x where `outputs`) and y, [positions, ...] each."""

    def __init__(self, outputs: bool) -> None:
        self.outputs = outputs
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def errors(self, weight: torch.Tensor, candidates: Sequence[torch.Tensor]) -> list[float]:
        totals = [0.0] * len(candidates)
        for source, quantized in self.pairs:
            outputs = source if self.outputs else source @ weight.t()
            for i, candidate in enumerate(candidates):
                difference = torch.addmm(outputs, quantized, candidate.t(), alpha=-1)
                totals[i] += float(difference.square_().sum(dtype=torch.float64))
        return totals


class FisherTest:
    """An AcceptanceTest for the embedding: `matrix` [n_embd, n_embd] weighs the errors of rows."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix

    def errors(self, weight: torch.Tensor, candidates: Sequence[torch.Tensor]) -> list[float]:
        differences = ((weight - candidate).to(self.matrix.dtype) for candidate in candidates)
        return [float(((d @ self.matrix) * d).sum()) for d in differences]


def second_moments(x: torch.Tensor) -> torch.Tensor:
    """The sum of x x^T over positions [n, columns], of the type `moments_dtype`."""
    columns = x.shape[1]
    sums = torch.zeros(columns, columns, dtype=moments_dtype(columns), device=x.device)
    _add_upper(sums, x)
    _mirror(sums)
    return sums


def _add_product(sums: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> None:
    """Add first^T second, of positions [n, rows] and [n, columns]."""
    if sums.dtype == second.dtype:  # without another matrix of this size
        sums.addmm_(first.t(), second)
    else:
        sums += first.t() @ second


def _add_upper(sums: torch.Tensor, x: torch.Tensor) -> None:
    """Add x^T x in stripes, and leave out most of what `_mirror` will fill in."""
    for stripe in _stripes(sums):
        _add_product(sums[stripe, stripe.start :], x[:, stripe], x[:, stripe.start :])


def _mirror(sums: torch.Tensor) -> None:
    """Copy what lies above the diagonal's stripes to below them."""
    for stripe in _stripes(sums):
        sums[stripe.stop :, stripe] = sums[stripe, stripe.stop :].t()


def _stripes(sums: torch.Tensor) -> list[slice]:
    n = len(sums)
    step = max(NARROWEST, -(-n // STRIPES))
    return [slice(first, min(first + step, n)) for first in range(0, n, step)]
