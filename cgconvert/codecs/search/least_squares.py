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
    "best_of",
    "exceeds",
    "extremes",
    "in_half",
    "inverse",
    "select",
    "to_half",
]

SMALLEST, LARGEST = 2.0**-24, 65504.0
"""Of the float16 above 0."""

BEYOND = 1e12
"""More than any type holds, and far from where the products of sums would overflow."""


GROUP = 1 << 16
"""Weights rounded at once on a CPU: they, their codes and a product stay in a core's cache."""


class CodeSums(NamedTuple):
    q: torch.Tensor
    qq: torch.Tensor
    qx: torch.Tensor


class Coder:
    """Rounds blocks x [subs, size, n] to codes, some sub-blocks at a time, in the same memory.

    Codes are clipped to `low` and `high`: numbers, or [1, 1, n] where a block is one sub-block.
    """

    def __init__(self, x: torch.Tensor, weight: torch.Tensor | None, low: Any, high: Any) -> None:
        self.x, self.weight, self.low, self.high = x, weight, low, high
        at_once = max(1, GROUP // x[0].numel()) if x.device.type == "cpu" else len(x)
        self._groups = [slice(first, first + at_once) for first in range(0, len(x), at_once)]
        self._codes, self._product = torch.empty_like(x[:at_once]), torch.empty_like(x[:at_once])

    def sums(self, slopes: torch.Tensor, levels: torch.Tensor | None = None) -> CodeSums:
        """Of codes round(slope * x + level), clipped, for many slopes and levels [many, subs, n].

        Without levels `q` is not filled in: only an offset needs it.
        """
        out = slopes.new_empty(3, *slopes.shape)
        for group in self._groups:
            x = self.x[group]
            weight = None if self.weight is None else self.weight[group]
            own = [None] * len(slopes) if levels is None else levels[:, group]
            for slope, level, q, qq, qx in zip(
                slopes[:, group], own, *out[:, :, group], strict=True
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
        self, steps: torch.Tensor, offsets: torch.Tensor | None = None, zero: Any = None
    ) -> torch.Tensor:
        """Those whose weights step * code - offset come nearest, plus `zero`: uint8, as x."""
        slopes = inverse(steps)
        levels = None if offsets is None else offsets * slopes
        found = torch.empty_like(self.x, dtype=torch.uint8)
        for group in self._groups:
            level = None if levels is None else levels[group]
            codes = self._round(self.x[group], slopes[group], level)
            found[group] = codes if zero is None else codes.add_(zero)
        return found

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


def select(larger: torch.Tensor, other: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """`larger` where `where` is 1, `other` where it is 0, all finite float32.

    To interpolate by 0 or 1 is exact, and on a CPU several times quicker than torch.where: nothing
    that takes or gives booleans is done with vectors there.
    """
    return torch.lerp(other, larger, where)


def exceeds(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """1 where `first` is larger than `second`, else 0: for `select`."""
    return torch.gt(first, second, out=torch.empty_like(first))


def best_of(gains: torch.Tensor, *states: torch.Tensor) -> list[torch.Tensor]:
    """Of each state [many, ...] what has the largest gain, [many, ...]; the first of equals."""
    best, *found = gains[0], *(state[0] for state in states)
    for gain, *others in zip(gains[1:], *(state[1:] for state in states), strict=True):
        larger = exceeds(gain, best)
        best = torch.maximum(gain, best)
        found = [select(new, old, larger) for new, old in zip(others, found, strict=True)]
    return found
