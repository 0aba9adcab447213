"""Sums over sub-blocks and what least squares makes of them.

x, codes and weights are [..., size, n], sums [..., n]: over the weights of a sub-block. With w = 1
where there are no weights, `q` is sum(w q), `qq` sum(w q^2), `qx` sum(w q x), and `w`, `x` sum(w)
and sum(w x). The error of any scale and minimum follows from them without another look at x.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from cgconvert.errors import InputError

__all__ = ["CodeSums", "code_sums", "extremes", "finite_half", "inverse", "round_codes"]

SMALLEST = 2.0**-24
"""The smallest float16 above 0."""


class CodeSums(NamedTuple):
    q: torch.Tensor
    qq: torch.Tensor
    qx: torch.Tensor


def code_sums(x: torch.Tensor, codes: torch.Tensor, weight: torch.Tensor | None) -> CodeSums:
    counted = codes if weight is None else codes * weight
    product = torch.mul(counted, codes)
    squares = product.sum(-2)
    torch.mul(counted, x, out=product)
    return CodeSums(counted.sum(-2), squares, product.sum(-2))


def inverse(scales: torch.Tensor) -> torch.Tensor:
    """1 / scales, 0 where that is not finite."""
    return scales.reciprocal().nan_to_num_(0.0, 0.0, 0.0)


def round_codes(
    x: torch.Tensor, steps: torch.Tensor, offsets: torch.Tensor | None, low: int, high: int
) -> torch.Tensor:
    """The code of each weight that comes nearest, as float32."""
    per_step = inverse(steps)
    codes = torch.mul(x, per_step.unsqueeze(-2))
    if offsets is not None:
        codes += (offsets * per_step).unsqueeze(-2)
    return codes.round_().clamp_(low, high)


def extremes(x: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and largest of each sub-block. Raises InputError where one is not finite."""
    low, high = x.amin(-2), x.amax(-2)
    if not (high - low).isfinite().all():
        raise InputError(
            f"{name} cannot hold these weights: one is NaN, infinite or so large that the scale of "
            "its block overflows float16; check the source, or choose F32"
        )
    return low, high


def finite_half(scales: torch.Tensor) -> torch.Tensor:
    """Rounded to float16 and back, what is not 0 to no less than the smallest one."""
    half = scales.half().float()
    return torch.where((half == 0) & (scales != 0), torch.copysign(_small(scales), scales), half)


def _small(like: torch.Tensor) -> torch.Tensor:
    return torch.full((), SMALLEST, device=like.device)
