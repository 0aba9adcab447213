"""The search for types without a minimum: weight = d * scale * (code - zero), signed scales.

As affine.py does it: many starting steps a sub-block, the best polished, scales rounded, then
codes and d refitted together and the best state of each block kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cgconvert.quant.least_squares import (
    CodeSums,
    code_sums,
    extremes,
    finite_half,
    inverse,
    round_codes,
)
from cgconvert.quant.parts import Parts

__all__ = ["Symmetric", "search_parts", "search_steps"]

LARGEST = 65504.0
"""Of float16."""


@dataclass(frozen=True)
class Symmetric:
    """Codes from -`zero` to `high`, and how hard to look.

    A start is the code that the weight of largest magnitude gets before it is clipped: below
    -`zero` the step is smaller than its range asks for. `polish` and `joint` count refits of a
    sub-block and of the block.
    """

    zero: int
    high: int
    starts: Sequence[float]
    weighted_starts: Sequence[float]
    polish: int = 1
    joint: int = 2


def search_steps(
    x: torch.Tensor, weight: torch.Tensor | None, how: Symmetric, name: str
) -> torch.Tensor:
    """The best step of each sub-block of x [subs, size, n], either sign: float32 [subs, n]."""
    low, high = extremes(x, name)
    per_largest = inverse(torch.where(high > -low, high, low))
    best = torch.stack([torch.full_like(low, -1.0), low])  # gain, step
    starts = how.starts if weight is None else how.weighted_starts
    for first in range(0, len(starts), 4):
        slope = torch.tensor(starts[first : first + 4], device=x.device).view(-1, 1, 1)
        codes = x * (per_largest * slope).unsqueeze(-2)
        codes.round_().clamp_(-how.zero, how.high)
        sums = code_sums(x, codes, weight)
        steps = _fit(sums)
        for found in torch.stack([steps * sums.qx, steps], 1):
            best = torch.where(found[0] > best[0], found, best)
    steps = best[1]
    for _ in range(how.polish):
        steps = _fit(code_sums(x, round_codes(x, steps, None, -how.zero, how.high), weight))
    return steps


def search_parts(
    x: torch.Tensor, weight: torch.Tensor | None, how: Symmetric, name: str, bits: int
) -> Parts:
    """Parts of blocks [subs, size, n] whose scales are signed integers of `bits`."""
    lowest, highest = -(1 << bits - 1), (1 << bits - 1) - 1
    steps = search_steps(x, weight, how, name)
    # The scale of largest magnitude becomes the lowest integer, whatever its sign.
    low, high = steps.amin(0), steps.amax(0)
    d = finite_half(torch.where(high > -low, high, low) / lowest)
    best: list[torch.Tensor] = []
    for turn in range(how.joint + 1):
        scales = (steps * inverse(d)).round_().clamp_(lowest, highest)
        codes = round_codes(x, d * scales, None, -how.zero, how.high)
        sums = code_sums(x, codes, weight)
        ax, aa = (scales * sums.qx).sum(0), (scales * scales).mul_(sums.qq).sum(0)
        refitted = ax / aa
        good = (refitted.abs() > 0) & (refitted.abs() < LARGEST)
        d = torch.where(good, finite_half(refitted), d)
        gain = (ax * 2).sub_(aa * d).mul_(d)
        found = [gain, d, scales]
        best = _better(best, found) if best else found
        if turn < how.joint:
            steps = _fit(sums)
    _, d, scales = best
    codes = round_codes(x, d * scales, None, -how.zero, how.high)
    return Parts(codes.add_(how.zero).byte(), scales.to(torch.int8), d.half())


def _fit(sums: CodeSums) -> torch.Tensor:
    """The step of least error for these codes."""
    return (sums.qx / sums.qq).nan_to_num_(0.0, 0.0, 0.0)


def _better(best: list[torch.Tensor], found: list[torch.Tensor]) -> list[torch.Tensor]:
    """Where `found`'s first is larger, found."""
    larger = found[0] > best[0]
    return [torch.where(larger, new, old) for new, old in zip(found, best, strict=True)]
