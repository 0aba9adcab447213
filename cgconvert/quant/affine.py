"""The search for types with a minimum: weight = d * scale * code - dmin * minimum.

In turn: many starting grids a sub-block, each rounded once and fitted by least squares; the best
polished; scales and minimums rounded to their few bits; then, with what they have become, codes, d
and dmin refitted together, the best state of each block kept. Every choice compares errors from
sums (least_squares.py).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from cgconvert.quant.least_squares import (
    LARGEST,
    SMALLEST,
    Coder,
    CodeSums,
    better,
    extremes,
    in_half,
    inverse,
    to_half,
)
from cgconvert.quant.parts import Parts

__all__ = ["Affine", "Grid", "search_grid", "search_parts"]

Starts = Sequence[tuple[float, float]]
Around = Sequence[tuple[int, int]]

SINGULAR = 1e-5
"""A determinant below this share of its first term is only rounding: all codes are the same."""


@dataclass(frozen=True)
class Affine:
    """How hard to look.

    `starts` move the ends of the first grid inwards, by steps of it: (at the least, at the largest
    weight). `polish` and `joint` count refits of a sub-block and of the block. `around` is what is
    tried on the scale and the minimum at the end, both sub-block by sub-block.
    """

    top: int
    starts: Starts
    weighted_starts: Starts
    polish: int = 0
    joint: int = 1
    around: Around = ((0, 0), (0, -1), (0, 1))
    weighted_around: Around = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))


@dataclass(frozen=True)
class Grid:
    """Steps and offsets of sub-blocks, [subs, n], not rounded yet, and the sums of x behind.

    `flat` is the offset of a step of 0: the mean of x, with its sign turned.
    """

    steps: torch.Tensor
    offsets: torch.Tensor
    w: torch.Tensor
    x: torch.Tensor
    flat: torch.Tensor


def search_grid(coder: Coder, how: Affine, name: str, signed: bool = False) -> Grid:
    """The best step and offset of each sub-block.

    An offset is not negative unless `signed`: 0 is then not held inside the grid.
    """
    x, weight = coder.x, coder.weight
    starts = how.starts if weight is None else how.weighted_starts
    low, high = extremes(x, name)
    if not signed:
        low = low.clamp_(max=0)
    w = torch.full_like(low, float(x.shape[-2])) if weight is None else weight.sum(-2)
    total = x.sum(-2) if weight is None else (weight * x).sum(-2)
    grid = Grid(low, high, w, total, (-total / w).nan_to_num_(0.0, 0.0, 0.0))
    slope = inverse((high - low) / how.top)
    level = -low * slope
    inwards = x.new_tensor(starts).T.reshape(2, -1, 1, 1)
    stretch = how.top / (how.top - inwards.sum(0))
    sums = coder.sums_of(slope * stretch, (level - inwards[0]) * stretch)
    steps, offsets = _fit(sums, grid, signed)
    gains = (steps * sums.qx).sub_(offsets * grid.x)
    best = torch.stack([gains, steps, offsets], 1)
    steps, offsets = functools.reduce(better, best)[1:]
    for _ in range(how.polish):
        coder.nearest(steps, offsets)
        steps, offsets = _fit(coder.sums(), grid, signed)
    return replace(grid, steps=steps, offsets=offsets)


def search_parts(
    x: torch.Tensor, weight: torch.Tensor | None, how: Affine, name: str, largest: int
) -> Parts:
    """Parts of blocks [subs, size, n] whose scales and minimums are integers up to `largest`."""
    coder = Coder(x, weight, 0, how.top)
    grid = search_grid(coder, how, name)
    steps, offsets = grid.steps, grid.offsets
    d = to_half(steps.amax(0) / largest)
    dmin = to_half(offsets.amax(0) / largest)
    states = []
    for turn in range(how.joint + 1):
        scales, minimums = _integers(steps, d, largest), _integers(offsets, dmin, largest)
        coder.nearest(d * scales, dmin * minimums)
        sums = coder.sums()
        d, dmin = _refit(sums, grid, scales, minimums, d, dmin)
        gain = _gain(sums, grid, d * scales, dmin * minimums).sum(0)
        states.append(torch.cat([torch.stack([gain, d, dmin]), scales, minimums]))
        if turn < how.joint:
            steps, _ = _fit(sums, grid)
            steps = _integers(steps, d, largest).mul_(d)  # the offset for what it is rounded to
            offsets = (steps * sums.q).sub_(grid.x).div_(grid.w).nan_to_num_(0.0, 0.0, 0.0)
            offsets.clamp_(min=0)
    best = functools.reduce(better, states)
    d, dmin = best[1:3]
    around = x.new_tensor(how.around if weight is None else how.weighted_around)
    near = (best[3:].view(2, 1, *steps.shape) + around.T[..., None, None]).clamp_(0, largest)
    steps, offsets = d * near[0], dmin * near[1]
    slopes = inverse(steps)
    sums = coder.sums_of(slopes, offsets * slopes)
    tried = torch.stack([_gain(sums, grid, steps, offsets), *near, *sums], 1)
    _, scales, minimums, *kept = functools.reduce(better, tried)
    d, dmin = _refit(CodeSums(*kept), grid, scales, minimums, d, dmin)
    codes = coder.nearest(d * scales, dmin * minimums)
    return Parts(codes.byte(), scales.to(torch.int8), d.half(), minimums.byte(), dmin.half())


def _fit(sums: CodeSums, grid: Grid, signed: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Step and offset of least error for these codes; the offset first, so that it can be held."""
    first = sums.qq * grid.w
    determinant = torch.maximum(first - sums.q * sums.q, first.mul_(SINGULAR))
    offsets = (sums.q * sums.qx).sub_(sums.qq * grid.x).div_(determinant)
    offsets = torch.where(determinant > 0, offsets, grid.flat)
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
    # dmin first, so that it can be held, and d for what it is rounded to. Without minimums: 0 / 0.
    new_dmin = (ab * ax).sub_(aa * bx).div_((aa * bb).sub_(ab * ab)).nan_to_num_(0.0, 0.0, 0.0)
    new_dmin = new_dmin.clamp_(min=0).half().float()
    new_d = (new_dmin * ab).add_(ax).div_(aa)
    good = in_half(new_d).logical_and_(new_dmin < LARGEST)
    new_d = new_d.half().float().clamp_(min=SMALLEST)
    return torch.where(good, new_d, d), torch.where(good, new_dmin, dmin)


def _gain(sums: CodeSums, grid: Grid, steps: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """How much less the squared error of each sub-block is than if its weights were 0."""
    gain = (offsets * sums.q).add_(sums.qx).mul_(2).sub_(steps * sums.qq).mul_(steps)
    return gain.sub_((offsets * grid.w).add_(grid.x, alpha=2).mul_(offsets))


def _integers(values: torch.Tensor, unit: torch.Tensor, largest: int) -> torch.Tensor:
    return (values * inverse(unit)).round_().clamp_(0, largest)
