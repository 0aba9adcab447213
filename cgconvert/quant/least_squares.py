"""Sums over sub-blocks and what least squares makes of them.

x, codes and weights are [..., size, n], sums [..., n]: over the weights of a sub-block. With w = 1
where there are no weights, `q` is sum(w q), `qq` sum(w q^2), `qx` sum(w q x), and `w`, `x` sum(w)
and sum(w x). The error of any scale and minimum follows from them without another look at x.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from cgconvert.errors import InputError

__all__ = [
    "LARGEST",
    "SMALLEST",
    "CodeSums",
    "Coder",
    "better",
    "extremes",
    "in_half",
    "inverse",
    "to_half",
]

SMALLEST, LARGEST = 2.0**-24, 65504.0
"""Of the float16 above 0."""

BEYOND = 1e12
"""More than any type holds, and far from where the products of sums would overflow."""


class CodeSums(NamedTuple):
    q: torch.Tensor
    qq: torch.Tensor
    qx: torch.Tensor


class Coder:
    """Rounds blocks x [subs, size, n] to codes, again and again in the same memory.

    Codes are clipped to `low` and `high`: numbers, or one a sub-block, [subs, 1, n].
    """

    def __init__(self, x: torch.Tensor, weight: torch.Tensor | None, low: Any, high: Any) -> None:
        self.x, self.weight, self.low, self.high = x, weight, low, high
        self.codes, self._product = torch.empty_like(x), torch.empty_like(x)
        self._counted = self.codes if weight is None else torch.empty_like(x)

    def round(self, slopes: torch.Tensor, levels: torch.Tensor | None = None) -> torch.Tensor:
        """round(slope * x + level), clipped, as float32: overwritten by the next call."""
        torch.mul(self.x, slopes.unsqueeze(-2), out=self.codes)
        if levels is not None:
            self.codes += levels.unsqueeze(-2)
        return self.codes.round_().clamp_(self.low, self.high)

    def nearest(self, steps: torch.Tensor, offsets: torch.Tensor | None = None) -> torch.Tensor:
        """The codes whose weights step * code - offset come nearest."""
        slopes = inverse(steps)
        return self.round(slopes, None if offsets is None else offsets * slopes)

    def sums(self, out: torch.Tensor | None = None) -> CodeSums:
        """Of the last codes; into `out`, [3, subs, n], where it is given."""
        if out is None:
            out = self.x.new_empty(3, self.x.shape[0], self.x.shape[2])
        if self.weight is not None:
            torch.mul(self.codes, self.weight, out=self._counted)
        torch.sum(self._counted, -2, out=out[0])
        torch.sum(torch.mul(self._counted, self.codes, out=self._product), -2, out=out[1])
        torch.sum(torch.mul(self._counted, self.x, out=self._product), -2, out=out[2])
        return CodeSums(*out)

    def sums_of(self, slopes: torch.Tensor, levels: torch.Tensor | None = None) -> CodeSums:
        """round() and sums() of each of many, [..., subs, n] with one axis before."""
        out = slopes.new_empty(3, *slopes.shape)
        for index, slope in enumerate(slopes):
            self.round(slope, None if levels is None else levels[index])
            self.sums(out[:, index])
        return CodeSums(*out)


def inverse(scales: torch.Tensor) -> torch.Tensor:
    """1 / scales, 0 where that is not finite."""
    return scales.reciprocal().nan_to_num_(0.0, 0.0, 0.0)


def extremes(x: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and largest of each sub-block. Raises InputError where one is beyond every type."""
    low, high = x.amin(-2), x.amax(-2)
    if not (torch.maximum(high, -low) < BEYOND).all():  # NaN is not
        raise InputError(
            f"{name} cannot hold these weights: one is NaN, infinite or so large that the scale of "
            "its block overflows float16; check the source, or choose F32"
        )
    return low, high


def to_half(scales: torch.Tensor) -> torch.Tensor:
    """Rounded to float16 and back, what is not 0 to no less than the smallest one."""
    half = scales.half().float()
    smallest = torch.copysign(torch.full_like(scales, SMALLEST), scales)
    return torch.where((half == 0) & (scales != 0), smallest, half)


def in_half(scales: torch.Tensor) -> torch.Tensor:
    """Which are above 0 and not above float16's largest; NaN is not."""
    return (scales > 0) & (scales < LARGEST)


def better(best: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """States [numbers, ...]: `found` where its first number is larger than `best`'s."""
    return torch.where(found[0] > best[0], found, best)
