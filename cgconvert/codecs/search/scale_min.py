"""The search for types with a minimum: weight = d * scale * code - dmin * minimum.

In turn: many starting grids a sub-block, each rounded once and fitted by least squares; the best
polished; scales rounded to their few bits, then the minimums that suit these; their neighbours
tried, sub-block by sub-block; d and dmin refitted to what they have become, and the codes to those.
Every choice compares errors from sums (least_squares.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from cgconvert.codecs.parts import Parts
from cgconvert.codecs.search.least_squares import (
    LARGEST,
    SMALLEST,
    Coder,
    CodeSums,
    best_of,
    extremes,
    in_half,
    inverse,
    to_half,
)

__all__ = ["Affine", "Grid", "search_grid", "search_parts"]

Starts = Sequence[tuple[float, float]]
Around = Sequence[tuple[int, int]]

SINGULAR = 1e-5
"""A determinant below this share of its first term is only rounding: all codes are the same."""


@dataclass(frozen=True)
class Affine:
    """How hard to look.

    `starts` move the ends of the first grid inwards, by steps of it: (at the least, at the largest
    weight). `polish` counts refits of the best. `around` is what is tried on the scale and the
    minimum at the end, both sub-block by sub-block.
    """

    top: int
    starts: Starts
    weighted_starts: Starts
    polish: int = 0
    around: Around = ((0, 0), (0, -1), (0, 1))
    weighted_around: Around = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))


@dataclass(frozen=True)
class Grid:
    """Steps and offsets of sub-blocks, [subs, n], not rounded yet, and the sums behind.

    `q` is of the codes that the steps were fitted to. `flat` is the offset of a step of 0: the
    mean of x, with its sign turned.
    """

    steps: torch.Tensor
    offsets: torch.Tensor
    q: torch.Tensor
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
    grid = Grid(low, high, total, w, total, (-total / w).nan_to_num_(0.0, 0.0, 0.0))
    slope = inverse((high - low) / how.top)
    level = -low * slope
    inwards = x.new_tensor(starts).T.reshape(2, -1, 1, 1)
    stretch = how.top / (how.top - inwards.sum(0))
    sums = coder.sums(slope * stretch, (level - inwards[0]) * stretch)
    steps, offsets = _fit(sums, grid, signed)
    gains = (steps * sums.qx).sub_(offsets * grid.x)
    steps, offsets, q = best_of(gains, steps, offsets, sums.q)
    for _ in range(how.polish):
        slope = inverse(steps)
        sums = coder.sums(slope[None], (offsets * slope)[None])
        steps, offsets = (found[0] for found in _fit(sums, grid, signed))
        q = sums.q[0]
    return replace(grid, steps=steps, offsets=offsets, q=q)


def search_parts(
    x: torch.Tensor, weight: torch.Tensor | None, how: Affine, name: str, largest: int
) -> Parts:
    """Parts of blocks [subs, size, n] whose scales and minimums are integers up to `largest`."""
    coder = Coder(x, weight, 0, how.top)
    grid = search_grid(coder, how, name)
    d = to_half(grid.steps.amax(0) / largest)
    scales = _integers(grid.steps, d, largest)
    # The offset for what its step is rounded to.
    offsets = (d * scales * grid.q).sub_(grid.x).div_(grid.w).nan_to_num_(0.0, 0.0, 0.0)
    dmin = to_half(offsets.clamp_(min=0).amax(0) / largest)
    minimums = _integers(offsets, dmin, largest)
    around = x.new_tensor(how.around if weight is None else how.weighted_around)
    near = (torch.stack([scales, minimums])[:, None] + around.T[..., None, None]).clamp_(0, largest)
    steps, offsets = d * near[0], dmin * near[1]
    slopes = inverse(steps)
    sums = coder.sums(slopes, offsets * slopes)
    scales, minimums, *kept = best_of(_gain(sums, grid, steps, offsets), *near, *sums)
    d, dmin = _refit(CodeSums(*kept), grid, scales, minimums, d, dmin)
    codes = coder.codes(d * scales, dmin * minimums)
    return Parts(codes, scales.to(torch.int8), d.half(), minimums.byte(), dmin.half())


def _fit(sums: CodeSums, grid: Grid, signed: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Step and offset of least error for these codes; the offset first, so that it can be held."""
    first = sums.qq * grid.w
    determinant = torch.maximum(first - sums.q * sums.q, first * SINGULAR)
    offsets = (sums.q * sums.qx).sub_(sums.qq * grid.x)
    none = torch.eq(determinant, 0, out=first)  # no code but 0: these offsets are 0 / 0
    offsets = offsets.addcmul_(none, grid.flat).div_(determinant.add_(none))
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
