"""The search for blocks with a zero point: weight = d * (code - zero), zero an integer code.

Of several zero points, each with several starting steps, the codes are rounded once and the step
fitted by least squares; the best is polished, neighbours of its zero point tried again.
"""

from __future__ import annotations

import torch

from cgconvert.codecs.parts import Parts
from cgconvert.codecs.search.least_squares import Coder, best_of, extremes, inverse, to_half

__all__ = ["search_shifted"]

STARTS = (1.0, 0.92, 1.08, 0.84)
WEIGHTED_STARTS = (*STARTS, 0.76, 0.66)
"""Shares of the step that the block's range asks for: an end that counts little may be clipped."""

SHIFTS = (0, -1, 1)
"""From the nearest zero point."""

POLISH = 2

State = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""A gain, a step and a zero point of each block, [1, n]."""


def search_shifted(x: torch.Tensor, weight: torch.Tensor | None, top: int, name: str) -> Parts:
    """Parts of blocks float32 [1, size, n]: codes 0 to `top`, 0 within the range of each block."""
    low, high = extremes(x, name)
    low, high = low.clamp_(max=0), high.clamp_(min=0)
    slope = inverse(high - low) * top
    level = (-low * slope).round_()
    coder = Coder(x, weight, 0, top)
    starts = STARTS if weight is None else WEIGHTED_STARTS
    best = _best(_tried(coder, slope, level, starts, top))
    for _ in range(POLISH):
        best = _best([best, *_tried(coder, inverse(best[1]), best[2], (1.0,), top)])
    d, zeros = to_half(best[1]), best[2]
    coder.low, coder.high = (-zeros)[:, None], (top - zeros)[:, None]
    codes = coder.codes(d, zero=zeros[:, None])
    half = d[0].half()
    return Parts(codes, torch.ones_like(half, dtype=torch.int8)[None], half, zeros.byte(), half)


def _tried(
    coder: Coder, slope: torch.Tensor, level: torch.Tensor, starts: tuple[float, ...], top: int
) -> list[State]:
    """Of zero points around `level` and of starts."""
    found = []
    for shift in SHIFTS:
        zeros = (level + shift).clamp_(0, top)
        coder.low, coder.high = (-zeros)[:, None], (top - zeros)[:, None]
        for start in starts:
            sums = coder.sums((slope / start)[None])
            steps = (sums.qx[0] / sums.qq[0]).nan_to_num_(0.0, 0.0, 0.0).clamp_(min=0)
            found.append((steps * sums.qx[0], steps, zeros))
    return found


def _best(found: list[State]) -> State:
    gains, steps, zeros = (torch.stack(numbers) for numbers in zip(*found, strict=True))
    gains, steps, zeros = best_of(gains, gains, steps, zeros)
    return gains, steps, zeros
