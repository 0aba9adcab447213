"""Sums over sub-blocks, and the least squares that follow from them.

x, codes and weights are [..., sub_block_size, n]; sums over the weights of a sub-block are
[..., n]. With w = 1 where no weight is given, `q` is sum(w q), `qq` sum(w q^2), `qx` sum(w q x),
and `w`, `x` are sum(w) and sum(w x). The squared error of any scale and minimum follows from them:

    sum(w (step q - offset - x)^2) = step^2 qq - 2 step offset q + offset^2 w
                                     - 2 step qx + 2 offset x + sum(w x^2)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from cgconvert.codecs.block_layout import unrepresentable

__all__ = [
    "FLOAT16_MAX",
    "FLOAT16_MIN",
    "CodeSums",
    "Coder",
    "best_of",
    "exceeds",
    "extremes",
    "fits_float16",
    "inverse",
    "round_to_float16",
    "select",
]

FLOAT16_MIN, FLOAT16_MAX = 2.0**-24, 65504.0
"""The smallest float16 above 0 and the largest finite one."""

BEYOND = 1e12
"""More than any type holds, and far from where the products of sums would overflow."""

GROUP = 1 << 16
"""Weights rounded at once on a CPU: they, their codes and a product stay in a core's cache."""


class CodeSums(NamedTuple):
    """Sums over the codes of each sub-block; see the module's formula."""

    q: torch.Tensor
    qq: torch.Tensor
    qx: torch.Tensor


class Coder:
    """Rounds blocks x [sub_blocks, sub_block_size, n] to codes, always in the same memory.

    Codes are clipped to `low` and `high`: numbers, or [1, 1, n] where blocks differ in them.
    """

    def __init__(self, x: torch.Tensor, weight: torch.Tensor | None, low: Any, high: Any) -> None:
        self.x, self.weight, self.low, self.high = x, weight, low, high
        at_once = max(1, GROUP // x[0].numel()) if x.device.type == "cpu" else len(x)
        self._groups = [slice(first, first + at_once) for first in range(0, len(x), at_once)]
        self._codes, self._product = torch.empty_like(x[:at_once]), torch.empty_like(x[:at_once])

    def sums(self, slopes: torch.Tensor, levels: torch.Tensor | None = None) -> CodeSums:
        """Sums of the codes round(slope * x + level), clipped, for many grids at once.

        `slopes` and `levels` are [grids, sub_blocks, n], and so is each sum. Without levels `q`
        is not filled in: only an offset needs it.
        """
        out = slopes.new_empty(3, *slopes.shape)
        for group in self._groups:
            x = self.x[group]
            weight = None if self.weight is None else self.weight[group]
            group_levels = [None] * len(slopes) if levels is None else levels[:, group]
            for slope, level, q, qq, qx in zip(
                slopes[:, group], group_levels, *out[:, :, group], strict=True
            ):
                codes, product = self._round(x, slope, level), self._product[: len(x)]
                counted = codes if weight is None else torch.mul(codes, weight, out=product)
                if level is not None:
                    torch.sum(counted, -2, out=q)
                if weight is None:
                    torch.sum(torch.mul(codes, codes, out=product), -2, out=qq)
                else:
                    torch.sum(codes.mul_(counted), -2, out=qq)
                torch.sum(counted.mul_(x), -2, out=qx)
        return CodeSums(*out)

    def codes(
        self, steps: torch.Tensor, offsets: torch.Tensor | None = None, zero_point: Any = None
    ) -> torch.Tensor:
        """The codes whose weights step * code - offset are nearest, uint8 of the shape of x.

        `zero_point` is added to them, where signed codes are stored from 0 up.
        """
        slopes = inverse(steps)
        levels = None if offsets is None else offsets * slopes
        nearest = torch.empty_like(self.x, dtype=torch.uint8)
        for group in self._groups:
            level = None if levels is None else levels[group]
            codes = self._round(self.x[group], slopes[group], level)
            nearest[group] = codes if zero_point is None else codes.add_(zero_point)
        return nearest

    def _round(
        self, x: torch.Tensor, slopes: torch.Tensor, levels: torch.Tensor | None
    ) -> torch.Tensor:
        codes = torch.mul(x, slopes.unsqueeze(-2), out=self._codes[: len(x)])
        if levels is not None:
            codes += levels.unsqueeze(-2)
        return codes.round_().clamp_(self.low, self.high)


def inverse(scales: torch.Tensor) -> torch.Tensor:
    """1 / scales, 0 where that is not finite."""
    return scales.reciprocal().nan_to_num_(0.0, 0.0, 0.0)


def extremes(x: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and largest weight of each sub-block, [sub_blocks, n].

    Raises InputError, which names the type `name`, where one is beyond what any type holds.
    """
    low, high = x.amin(-2), x.amax(-2)
    if not (torch.maximum(high, -low) < BEYOND).all():  # a NaN is not
        raise unrepresentable(name)
    return low, high


def round_to_float16(scales: torch.Tensor) -> torch.Tensor:
    """Rounded to float16 and back; a scale above 0 stays above 0."""
    half = scales.half().float()
    smallest = torch.copysign(torch.full_like(scales, FLOAT16_MIN), scales)
    return torch.where((half == 0) & (scales != 0), smallest, half)


def fits_float16(scales: torch.Tensor) -> torch.Tensor:
    """Whether each is above 0 and below float16's largest, bool; NaN is not."""
    return (scales > 0) & (scales < FLOAT16_MAX)


def select(larger: torch.Tensor, smaller: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """`larger` where `where` is 1, `smaller` where it is 0; all are finite float32.

    To interpolate by 0 or 1 is exact, and on a CPU several times quicker than torch.where, whose
    booleans are not computed with vectors there.
    """
    return torch.lerp(smaller, larger, where)


def exceeds(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """1 where `first` is larger than `second`, else 0, as float32: for `select`."""
    return torch.gt(first, second, out=torch.empty_like(first))


def best_of(gains: torch.Tensor, *candidates: torch.Tensor) -> list[torch.Tensor]:
    """The candidate of largest gain, element by element; the first among equals.

    `gains` and each of `candidates` are [many, ...]; results are [...].
    """
    best_gain, *best = gains[0], *(values[0] for values in candidates)
    for gain, *current in zip(gains[1:], *(values[1:] for values in candidates), strict=True):
        larger = exceeds(gain, best_gain)
        best_gain = torch.maximum(gain, best_gain)
        best = [select(new, old, larger) for new, old in zip(current, best, strict=True)]
    return best
