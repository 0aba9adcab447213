"""What a text tells of a matrix: sums to fit it to, positions held out to judge it by."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import torch

from cgconvert.calibrate.gptq import DAMPING, Hessian, moments_dtype
from cgconvert.model.device import CPU

__all__ = ["AcceptanceTest", "Fisher", "Moments", "Positions", "moments_of"]

STRIPES, NARROWEST = 8, 256
"""Stripes that a symmetric matrix of sums is computed in, of so many columns at least."""


class Moments:
    """Sums over positions of y y^T, and of the outputs W x that are wanted times y^T.

    `inputs` is [columns, columns]. What is wanted follows from `cross`, the sum of x y^T, which
    serves several matrices of the same inputs, or is summed itself where outputs are narrower:
    `wanted` [rows, columns].
    """

    def __init__(self, columns: int, rows: int | None = None, device: torch.device = CPU) -> None:
        dtype, wanted = moments_dtype(columns), columns if rows is None else rows
        self.inputs = torch.zeros(columns, columns, dtype=dtype, device=device)
        self.cross = torch.zeros(wanted, columns, dtype=dtype, device=device)
        self.mean_exact = torch.zeros(wanted, dtype=torch.float64, device=device)
        self.mean_ours = torch.zeros(columns, dtype=torch.float64, device=device)
        self.outputs, self.count = rows is not None, 0

    def add(self, exact: torch.Tensor, ours: torch.Tensor) -> None:
        """Of positions [n, columns]; `exact` are x, or W x where there are `rows`."""
        _add_upper(self.inputs, ours)
        _add(self.cross, exact, ours)
        self.mean_exact += exact.sum(0)
        self.mean_ours += ours.sum(0)
        self.count += len(exact)

    @cached_property
    def hessian(self) -> Hessian:
        """Of `inputs`, which nobody looks at after this."""
        _mirror(self.inputs)
        self.scale = float(self.inputs.diagonal().mean().clamp(min=1e-30))
        return Hessian.of(self.inputs, scratch=True)

    def target(self, weight: torch.Tensor) -> torch.Tensor:
        """The matrix whose outputs on our inputs are nearest to `weight`'s on the source's.

        Where outputs are summed it is asked for once: what is summed is used up.
        """
        hessian = self.hessian
        if self.outputs:
            wanted, self.cross = self.cross, torch.empty(0)
        else:
            wanted = weight.to(self.cross.dtype) @ self.cross
        wanted = wanted.div_(self.scale).float().add_(weight, alpha=DAMPING)
        return hessian.solve(wanted)

    def bias(self, weight: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """What to add to a bias so that the mean output stays: E[W x - Q y], float32 [rows]."""
        exact = self.mean_exact if self.outputs else weight.double() @ self.mean_exact
        return ((exact - other.double() @ self.mean_ours) / self.count).float()


class AcceptanceTest(Protocol):
    def errors(self, weight: torch.Tensor, others: Sequence[torch.Tensor]) -> list[float]:
        """How far outputs of each of the others are from those of `weight`, in all:
        sum |W x - Q y|^2."""


class Positions:
    """Positions that were held out: `exact` as Moments.add has them, and ours."""

    def __init__(self, outputs: bool) -> None:
        self.outputs = outputs
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def errors(self, weight: torch.Tensor, others: Sequence[torch.Tensor]) -> list[float]:
        totals = [0.0] * len(others)
        for exact, ours in self.pairs:
            wanted = exact if self.outputs else exact @ weight.t()
            for i, other in enumerate(others):
                missing = torch.addmm(wanted, ours, other.t(), alpha=-1)
                totals[i] += float(missing.square_().sum(dtype=torch.float64))
        return totals


class Fisher:
    """The embedding's: errors of its rows count by this matrix [n_embd, n_embd]."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix

    def errors(self, weight: torch.Tensor, others: Sequence[torch.Tensor]) -> list[float]:
        missing = ((weight - other).to(self.matrix.dtype) for other in others)
        return [float(((m @ self.matrix) * m).sum()) for m in missing]


def moments_of(x: torch.Tensor) -> torch.Tensor:
    """The sum of x x^T over positions [n, columns], of moments_dtype."""
    columns = x.shape[1]
    sums = torch.zeros(columns, columns, dtype=moments_dtype(columns), device=x.device)
    _add_upper(sums, x)
    _mirror(sums)
    return sums


def _add(sums: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> None:
    """first^T second, of positions [n, rows] and [n, columns]."""
    if sums.dtype == second.dtype:  # without another matrix of this size
        sums.addmm_(first.t(), second)
    else:
        sums += first.t() @ second


def _add_upper(sums: torch.Tensor, x: torch.Tensor) -> None:
    """x^T x, in stripes without most of what `_mirror` will bring."""
    for some in _stripes(sums):
        _add(sums[some, some.start :], x[:, some], x[:, some.start :])


def _mirror(sums: torch.Tensor) -> None:
    for some in _stripes(sums):
        sums[some.stop :, some] = sums[some, some.stop :].t()


def _stripes(sums: torch.Tensor) -> list[slice]:
    n = len(sums)
    step = max(NARROWEST, -(-n // STRIPES))
    return [slice(first, min(first + step, n)) for first in range(0, n, step)]
