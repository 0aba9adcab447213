"""Statistics of a matrix's inputs on a text: sums to fit the matrix to, and tests to accept a fit.

Two models run on the same text: the source, and the model quantized so far. x are the inputs of a
matrix W in the source, and y are the inputs of its quantized form Q in the quantized model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

from cgconvert.calibrate.gptq import DAMPING, Hessian, moments_dtype
from cgconvert.lazy import torch
from cgconvert.model.device import float64_device, float64_sum, torch_device

__all__ = [
    "AcceptanceTest",
    "FisherTest",
    "InputStatistics",
    "ValidationPositions",
    "second_moments",
]

STRIPES, MIN_STRIPE_ROWS = 8, 256
"""The number of stripes in which a symmetric matrix is summed, and the fewest rows of a stripe."""


class InputStatistics:
    """Sums over positions that matrices [rows, columns] with the same inputs are fitted to.

    If a matrix has far fewer rows than columns, its statistics are smaller if they are computed
    from its outputs W x instead of its inputs x. They then belong to this matrix alone.

    Args:
        columns: The width of y.
        rows: The width of the outputs W x; None if the statistics are computed from x.
        device: The device of the inputs, and of all sums if it has float64.

    Attributes:
        moments: The sum of y y^T, [columns, columns].
        cross: The sum of x y^T, [columns, columns]; or that of W x y^T, [rows, columns].
        source_sum: The sum of x, float64 [columns]; or that of W x, float64 [rows].
        quantized_sum: The sum of y, float64 [columns].
        has_outputs: Whether the statistics are computed from W x.
        count: The number of positions.
    """

    def __init__(
        self, columns: int, rows: int | None = None, device: torch.device | None = None
    ) -> None:
        device = device or torch_device("cpu")
        dtype, height = moments_dtype(columns), columns if rows is None else rows
        self.device, sums = device, float64_device(device)
        self.moments = torch.zeros(columns, columns, dtype=dtype, device=sums)
        self.cross = torch.zeros(height, columns, dtype=dtype, device=sums)
        self.source_sum = torch.zeros(height, dtype=torch.float64, device=sums)
        self.quantized_sum = torch.zeros(columns, dtype=torch.float64, device=sums)
        self.has_outputs, self.count = rows is not None, 0

    def add(self, source: torch.Tensor, quantized: torch.Tensor) -> None:
        """Add n positions to the sums.

        Args:
            source: x, [n, columns]; or W x, [n, rows].
            quantized: y, [n, columns].
        """
        _add_upper(self.moments, quantized)
        _add_product(self.cross, source, quantized)
        self.source_sum += source.sum(0).to(self.source_sum.device)
        self.quantized_sum += quantized.sum(0).to(self.quantized_sum.device)
        self.count += len(source)

    @cached_property
    def hessian(self) -> Hessian:
        """The Hessian of y. It overwrites `moments` to save memory, so `add` must not follow."""
        _mirror(self.moments)
        self.scale = float(self.moments.diagonal().mean().clamp(min=1e-30))
        return Hessian.from_moments(self.moments, overwrite=True).to(self.device)

    def target(self, weight: torch.Tensor) -> torch.Tensor:
        """Compute the matrix [rows, columns] whose outputs for y are nearest to W x.

        It is W E[x y^T] E[y y^T]^-1, where W is `weight` and both expectations are damped by the
        same multiple of the identity. If the statistics have outputs, this can be called only once,
        because it overwrites `cross`.
        """
        hessian = self.hessian
        if self.has_outputs:
            products, self.cross = self.cross, torch.empty(0)
        else:
            products = weight.to(self.cross.device, self.cross.dtype) @ self.cross
        products = products.div_(self.scale).float().to(weight.device).add_(weight, alpha=DAMPING)
        return hessian.solve(products)

    def bias_change(self, weight: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
        """Compute E[W x - Q y], float32 [rows]; added to the bias, it restores the mean output.

        W is `weight`, and Q is `quantized`, which is decoded.
        """
        sums = self.source_sum
        source = sums if self.has_outputs else weight.to(sums.device, sums.dtype) @ sums
        change = (source - quantized.to(sums.device, sums.dtype) @ self.quantized_sum) / self.count
        return change.float().to(weight.device)


class AcceptanceTest(Protocol):
    """A test that compares quantized forms of a matrix on the validation windows."""

    def errors(self, weight: torch.Tensor, candidates: Sequence[torch.Tensor]) -> list[float]:
        """Compute the squared output error of each candidate.

        Args:
            weight: W, float32 [rows, columns].
            candidates: Decoded quantized forms Q, float32 [rows, columns] each.
        """


class ValidationPositions:
    """An AcceptanceTest by the sum of |W x - Q y|^2 over validation positions.

    Args:
        has_outputs: Whether the pairs contain W x instead of x.

    Attributes:
        pairs: Pairs of x [n, columns], or W x [n, rows], and y [n, columns].
    """

    def __init__(self, has_outputs: bool) -> None:
        self.has_outputs = has_outputs
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def errors(self, weight: torch.Tensor, candidates: Sequence[torch.Tensor]) -> list[float]:
        totals = [0.0] * len(candidates)
        for source, quantized in self.pairs:
            outputs = source if self.has_outputs else source @ weight.t()
            for i, candidate in enumerate(candidates):
                difference = torch.addmm(outputs, quantized, candidate.t(), alpha=-1)
                totals[i] += float(float64_sum(difference.square_()))
        return totals


class FisherTest:
    """An AcceptanceTest for the embedding by the sum of (w - q) F (w - q)^T over all rows w.

    Args:
        matrix: The Fisher matrix F of the embedding's output, [n_embd, n_embd].
    """

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix

    def errors(self, weight: torch.Tensor, candidates: Sequence[torch.Tensor]) -> list[float]:
        differences = (
            (weight - candidate).to(self.matrix.device, self.matrix.dtype)
            for candidate in candidates
        )
        return [float(((d @ self.matrix) * d).sum()) for d in differences]


def second_moments(x: torch.Tensor) -> torch.Tensor:
    """Compute the sum of x x^T over n positions x [n, columns], in the type `moments_dtype`."""
    columns = x.shape[1]
    dtype = moments_dtype(columns)
    sums = torch.zeros(columns, columns, dtype=dtype, device=float64_device(x.device))
    _add_upper(sums, x)
    _mirror(sums)
    return sums


def _add_product(sums: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add left^T right to `sums`, for positions left [n, rows] and right [n, columns]."""
    if sums.dtype == right.dtype:  # addmm_ needs no temporary matrix of the size of `sums`
        sums.addmm_(left.t(), right)
    else:
        sums += (left.t() @ right).to(sums.device)


def _add_upper(sums: torch.Tensor, x: torch.Tensor) -> None:
    """Add x^T x to `sums`, only the stripes' columns from the diagonal on.

    This saves almost half of the work; `_mirror` fills in the rest.
    """
    for stripe in _stripes(sums):
        _add_product(sums[stripe, stripe.start :], x[:, stripe], x[:, stripe.start :])


def _mirror(sums: torch.Tensor) -> None:
    """Make `sums` symmetric by copying its upper part to the lower part that `_add_upper` omits."""
    for stripe in _stripes(sums):
        sums[stripe.stop :, stripe] = sums[stripe, stripe.stop :].t()


def _stripes(sums: torch.Tensor) -> list[slice]:
    """Cut the rows of `sums` into at most STRIPES slices."""
    n = len(sums)
    size = max(MIN_STRIPE_ROWS, -(-n // STRIPES))
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
