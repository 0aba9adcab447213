"""The search for types with a minimum: weight = d * scale * code - dmin * minimum.

In turn: many starting grids a sub-block, each rounded once and fitted by least squares; the best
polished; scales and minimums rounded to their few bits; then, with what they have become, codes, d
and dmin refitted together, the best state of each block kept. Every choice compares errors from
sums (least_squares.py).
"""

from __future__ import annotations

import math
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

__all__ = ["Affine", "Grid", "search_grid", "search_parts"]

Starts = Sequence[tuple[float, float]]

SINGULAR = 1e-5
"""A determinant below this share of its first term is only rounding: all codes are the same."""

LARGEST = 65504.0
"""Of float16."""


@dataclass(frozen=True)
class Affine:
    """How hard to look.

    `starts` move the ends of the first grid inwards, by steps of it: (at the least, at the largest
    weight). `polish` and `joint` count refits of a sub-block and of the block.
    """

    top: int
    starts: Starts
    weighted_starts: Starts
    polish: int = 2
    joint: int = 2


@dataclass(frozen=True)
class Grid:
    """Steps and offsets of sub-blocks, [subs, n], not rounded yet, and the sums of x behind."""

    steps: torch.Tensor
    offsets: torch.Tensor
    w: torch.Tensor
    x: torch.Tensor


def search_grid(
    x: torch.Tensor, weight: torch.Tensor | None, how: Affine, name: str, signed: bool = False
) -> Grid:
    """The best step and offset of each sub-block of x [subs, size, n].

    An offset is not negative unless `signed`: 0 is then not held inside the grid.
    """
    low, high = extremes(x, name)
    if not signed:
        low = low.clamp_(max=0)
    if weight is None:
        grid = Grid(low, high, torch.full_like(low, float(x.shape[-2])), x.sum(-2))
    else:
        grid = Grid(low, high, weight.sum(-2), (weight * x).sum(-2))
    per_step = inverse((high - low) / how.top)
    zero = -low * per_step
    best = torch.stack([torch.full_like(low, -math.inf), low, low])  # gain, step, offset
    for starts in _batches(how.starts if weight is None else how.weighted_starts):
        stretch = [how.top / (how.top - a - b) for a, b in starts]
        shift = [-a * c for (a, _), c in zip(starts, stretch, strict=True)]
        slope, level = _each(stretch, x), _each(shift, x)
        codes = x * (per_step * slope).unsqueeze(-2)
        codes.add_((zero * slope).add_(level).unsqueeze(-2)).round_().clamp_(0, how.top)
        sums = code_sums(x, codes, weight)
        steps, offsets = _fit(sums, grid, signed)
        gain = (steps * sums.qx).sub_(offsets * grid.x)
        for found in torch.stack([gain, steps, offsets], 1):
            best = torch.where(found[0] > best[0], found, best)
    _, steps, offsets = best
    for _ in range(how.polish):
        codes = round_codes(x, steps, offsets, 0, how.top)
        steps, offsets = _fit(code_sums(x, codes, weight), grid, signed)
    return Grid(steps, offsets, grid.w, grid.x)


def search_parts(
    x: torch.Tensor, weight: torch.Tensor | None, how: Affine, name: str, largest: int
) -> Parts:
    """Parts of blocks [subs, size, n] whose scales and minimums are integers up to `largest`."""
    grid = search_grid(x, weight, how, name)
    steps, offsets = grid.steps, grid.offsets
    d = finite_half(steps.amax(0) / largest)
    dmin = finite_half(offsets.amax(0) / largest)
    best: list[torch.Tensor] = []
    for turn in range(how.joint + 1):
        scales, minimums = _integers(steps, d, largest), _integers(offsets, dmin, largest)
        codes = round_codes(x, d * scales, dmin * minimums, 0, how.top)
        sums = code_sums(x, codes, weight)
        d, dmin = _refit(sums, grid, scales, minimums, d, dmin)
        error = _error(sums, grid, d * scales, dmin * minimums).sum(0)
        found = [-error, d, dmin, scales, minimums]
        best = _better(best, found) if best else found
        if turn < how.joint:
            steps, _ = _fit(sums, grid)
            steps = _integers(steps, d, largest).mul_(d)  # the offset for what it is rounded to
            offsets = (steps * sums.q).sub_(grid.x).div_(grid.w).nan_to_num_(0.0, 0.0, 0.0)
            offsets.clamp_(min=0)
    _, d, dmin, scales, minimums = best
    codes = round_codes(x, d * scales, dmin * minimums, 0, how.top)
    return Parts(codes.byte(), scales.to(torch.int8), d.half(), minimums.byte(), dmin.half())


def _fit(sums: CodeSums, grid: Grid, signed: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Step and offset of least error for these codes; the offset first, so that it can be held."""
    first = sums.qq * grid.w
    determinant = torch.maximum(first - sums.q * sums.q, first.mul_(SINGULAR))
    offsets = (sums.q * sums.qx).sub_(sums.qq * grid.x).div_(determinant)
    offsets = offsets.nan_to_num_(0.0, 0.0, 0.0)
    if not signed:
        offsets.clamp_(min=0)
    steps = (offsets * sums.q).add_(sums.qx).div_(sums.qq).nan_to_num_(0.0, 0.0, 0.0)
    return steps, offsets


def _refit(
    sums: CodeSums,
    grid: Grid,
    scales: torch.Tensor,
    minimums: torch.Tensor,
    d: torch.Tensor,
    dmin: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """d and dmin of least error over each block, in float16; as they were where there is none."""
    aa = (scales * scales).mul_(sums.qq).sum(0)
    ab = (scales * minimums).mul_(sums.q).sum(0)
    bb = (minimums * minimums).mul_(grid.w).sum(0)
    ax, bx = (scales * sums.qx).sum(0), (minimums * grid.x).sum(0)
    determinant = aa * bb - ab * ab
    new_d = (bb * ax - ab * bx) / determinant
    new_dmin = (ab * ax - aa * bx) / determinant
    # Where there are no minimums the determinant is 0 and d stands alone.
    alone = bb == 0
    new_d, new_dmin = torch.where(alone, ax / aa, new_d), torch.where(alone, dmin, new_dmin)
    good = (new_d > 0) & (new_d < LARGEST) & (new_dmin >= 0) & (new_dmin < LARGEST)
    return (
        torch.where(good, finite_half(new_d), d),
        torch.where(good, finite_half(new_dmin), dmin),
    )


def _error(sums: CodeSums, grid: Grid, steps: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Squared error of each sub-block less the sum of its squares."""
    error = (steps * sums.qq).sub_(2 * sums.qx).sub_(2 * offsets * sums.q).mul_(steps)
    return error.add_((offsets * grid.w).add_(2 * grid.x).mul_(offsets))


def _integers(values: torch.Tensor, unit: torch.Tensor, largest: int) -> torch.Tensor:
    return (values * inverse(unit)).round_().clamp_(0, largest)


def _better(best: list[torch.Tensor], found: list[torch.Tensor]) -> list[torch.Tensor]:
    """Where `found`'s first is larger, found."""
    larger = found[0] > best[0]
    return [torch.where(larger, new, old) for new, old in zip(found, best, strict=True)]


def _batches(starts: Starts) -> list[Starts]:
    """Four starts at once spread the cost of a call over more numbers and still fit a cache."""
    return [starts[first : first + 4] for first in range(0, len(starts), 4)]


def _each(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=like.device).view(-1, 1, 1)
