"""The search for types without a minimum: weight = d * scale * (code - zero), signed scales.

As affine.py does it: many starting steps a sub-block, the best polished, scales rounded, their
neighbours tried, then d refitted and the codes to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cgconvert.codecs.parts import Parts
from cgconvert.codecs.search.least_squares import (
    Coder,
    CodeSums,
    best_of,
    exceeds,
    extremes,
    in_half,
    inverse,
    select,
    to_half,
)

__all__ = ["Symmetric", "search_parts", "search_whole"]


@dataclass(frozen=True)
class Symmetric:
    """Codes from -`zero` to `high`, and how hard to look.

    A start is the code that the weight of largest magnitude gets before it is clipped: below
    -`zero` the step is smaller than its range asks for. `polish` counts refits of the best.
    """

    zero: int
    high: int
    starts: Sequence[float]
    weighted_starts: Sequence[float]
    polish: int = 1


def search_parts(
    x: torch.Tensor, weight: torch.Tensor | None, how: Symmetric, name: str, bits: int
) -> Parts:
    """Parts of blocks [subs, size, n] whose scales are signed integers of `bits`."""
    lowest, highest = -(1 << bits - 1), (1 << bits - 1) - 1
    coder = Coder(x, weight, -how.zero, how.high)
    steps = _search_steps(coder, how, name)
    # The scale of largest magnitude becomes the lowest integer, whatever its sign.
    d = to_half(_largest(steps.amin(0), steps.amax(0)) / lowest)
    scales = (steps * inverse(d)).round_().clamp_(lowest, highest)
    near = (scales + scales.new_tensor([0, -1, 1])[:, None, None]).clamp_(lowest, highest)
    steps = d * near
    sums = coder.sums(inverse(steps))
    gain = (sums.qx * 2).sub_(sums.qq * steps).mul_(steps)
    scales, qq, qx = best_of(gain, near, sums.qq, sums.qx)
    d = _refit(qq, qx, scales, d)
    codes = coder.codes(d * scales, zero=how.zero)
    return Parts(codes, scales.to(torch.int8), d.half())


def search_whole(x: torch.Tensor, weight: torch.Tensor | None, how: Symmetric, name: str) -> Parts:
    """Parts of blocks [1, size, n], which have d and no scales."""
    coder = Coder(x, weight, -how.zero, how.high)
    d = to_half(_search_steps(coder, how, name))
    return Parts.whole(coder.codes(d, zero=how.zero)[0], d[0].half())


def _search_steps(coder: Coder, how: Symmetric, name: str) -> torch.Tensor:
    """The best step of each sub-block, of either sign: float32 [subs, n]."""
    starts = how.starts if coder.weight is None else how.weighted_starts
    slope = inverse(_largest(*extremes(coder.x, name)))
    sums = coder.sums(slope * slope.new_tensor(starts)[:, None, None])
    steps = _fit(sums)
    steps = best_of(steps * sums.qx, steps)[0]
    for _ in range(how.polish):
        steps = _fit(coder.sums(inverse(steps)[None]))[0]
    return steps


def _largest(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The one of larger magnitude."""
    return select(high, low, exceeds(high, -low))


def _fit(sums: CodeSums) -> torch.Tensor:
    """The step of least error for these codes."""
    return (sums.qx / sums.qq).nan_to_num_(0.0, 0.0, 0.0)


def _refit(
    qq: torch.Tensor, qx: torch.Tensor, scales: torch.Tensor, d: torch.Tensor
) -> torch.Tensor:
    """d of least error over each block, in float16, as it was where there is none."""
    best = (scales * qx).sum(0) / (scales * scales).mul_(qq).sum(0)
    return torch.where(in_half(best.abs()), to_half(best), d)
