"""The search for types without a minimum: weight = d * scale * (code - zero), signed scales.

As affine.py does it: many starting steps a sub-block, the best polished, scales rounded, then
codes and d refitted together and the best state of each block kept.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cgconvert.quant.least_squares import (
    Coder,
    CodeSums,
    better,
    extremes,
    in_half,
    inverse,
    to_half,
)
from cgconvert.quant.parts import Parts

__all__ = ["Symmetric", "search_parts", "search_whole"]


@dataclass(frozen=True)
class Symmetric:
    """Codes from -`zero` to `high`, and how hard to look.

    A start is the code that the weight of largest magnitude gets before it is clipped: below
    -`zero` the step is smaller than its range asks for. `polish` and `joint` count refits of a
    sub-block and of the block; the neighbours of each scale are tried at the end.
    """

    zero: int
    high: int
    starts: Sequence[float]
    weighted_starts: Sequence[float]
    polish: int = 1
    joint: int = 1


def search_parts(
    x: torch.Tensor, weight: torch.Tensor | None, how: Symmetric, name: str, bits: int
) -> Parts:
    """Parts of blocks [subs, size, n] whose scales are signed integers of `bits`."""
    lowest, highest = -(1 << bits - 1), (1 << bits - 1) - 1
    coder = Coder(x, weight, -how.zero, how.high)
    steps = _search_steps(coder, how, name)
    # The scale of largest magnitude becomes the lowest integer, whatever its sign.
    d = to_half(_largest(steps.amin(0), steps.amax(0)) / lowest)
    states = []
    for turn in range(how.joint + 1):
        scales = (steps * inverse(d)).round_().clamp_(lowest, highest)
        coder.nearest(d * scales)
        sums = coder.sums()
        d, ax, aa = _refit(sums, scales, d)
        gain = (ax * 2).sub_(aa * d).mul_(d)
        states.append(torch.cat([torch.stack([gain, d]), scales]))
        if turn < how.joint:
            steps = _fit(sums)
    best = functools.reduce(better, states)
    d, scales = best[1], best[2:]
    near = (scales + scales.new_tensor([0, -1, 1])[:, None, None]).clamp_(lowest, highest)
    steps = d * near
    sums = coder.sums_of(inverse(steps))
    gain = (sums.qx * 2).sub_(sums.qq * steps).mul_(steps)
    _, scales, *kept = functools.reduce(better, torch.stack([gain, near, *sums], 1))
    d, _, _ = _refit(CodeSums(*kept), scales, d)
    codes = coder.nearest(d * scales)
    return Parts(codes.add_(how.zero).byte(), scales.to(torch.int8), d.half())


def search_whole(x: torch.Tensor, weight: torch.Tensor | None, how: Symmetric, name: str) -> Parts:
    """Parts of blocks [1, size, n], which have d and no scales."""
    coder = Coder(x, weight, -how.zero, how.high)
    d = to_half(_search_steps(coder, how, name))
    return Parts.whole(coder.nearest(d)[0].add_(how.zero).byte(), d[0].half())


def _search_steps(coder: Coder, how: Symmetric, name: str) -> torch.Tensor:
    """The best step of each sub-block, of either sign: float32 [subs, n]."""
    starts = how.starts if coder.weight is None else how.weighted_starts
    slope = inverse(_largest(*extremes(coder.x, name)))
    sums = coder.sums_of(slope * slope.new_tensor(starts)[:, None, None])
    steps = _fit(sums)
    steps = functools.reduce(better, torch.stack([steps * sums.qx, steps], 1))[1]
    for _ in range(how.polish):
        coder.nearest(steps)
        steps = _fit(coder.sums())
    return steps


def _largest(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The one of larger magnitude."""
    return torch.where(high > -low, high, low)


def _fit(sums: CodeSums) -> torch.Tensor:
    """The step of least error for these codes."""
    return (sums.qx / sums.qq).nan_to_num_(0.0, 0.0, 0.0)


def _refit(
    sums: CodeSums, scales: torch.Tensor, d: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """d of least error over each block, in float16, as it was where there is none; and its sums."""
    ax, aa = (scales * sums.qx).sum(0), (scales * scales).mul_(sums.qq).sum(0)
    best = ax / aa
    return torch.where(in_half(best.abs()), to_half(best), d), ax, aa
