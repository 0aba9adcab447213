"""The search for types with a minimum: weight = d * scale * code - dmin * minimum.

Many starting grids are rounded once each and fitted by least squares, the best of each sub-block is
refitted. Scales are rounded to their bits, then the minimums that suit these; neighbours of both
are tried, sub-block by sub-block; at last d and dmin are refitted to the rounded scales and
minimums, and the codes to d and dmin. Every choice compares errors from sums (least_squares.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from cgconvert.codecs.block_layout import BlockLayout, BlockParams
from cgconvert.codecs.search.least_squares import (
    FLOAT16_MAX,
    FLOAT16_MIN,
    Coder,
    CodeSums,
    best_of,
    extremes,
    fits_float16,
    inverse,
    round_to_float16,
)
from cgconvert.codecs.search.strategy import Search

__all__ = ["ScaleMinSearch"]

SINGULAR = 1e-5
"""A determinant below this share of its first term is only rounding: all codes are the same."""


@dataclass(frozen=True)
class ScaleMinSearch(Search):
    """Searches the step and the offset of each sub-block.

    Attributes:
        end_shifts: the starting grids. Each moves the ends of the grid inwards from the least and
            the largest weight, by so many of its steps: (at the least, at the largest).
        weighted_end_shifts: the same where squared errors do not count alike.
        refits: how often the best grid is fitted again to the codes it gives.
        neighbours: changes of a rounded (scale, minimum) that are tried at the end.
        weighted_neighbours: the same where squared errors do not count alike.
    """

    end_shifts: Sequence[tuple[float, float]]
    weighted_end_shifts: Sequence[tuple[float, float]]
    refits: int = 0
    neighbours: Sequence[tuple[int, int]] = ((0, 0), (0, -1), (0, 1))
    weighted_neighbours: Sequence[tuple[int, int]] = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))

    def fit(self, x: torch.Tensor, weight: torch.Tensor | None, layout: BlockLayout) -> BlockParams:
        if layout.scale_bits is None:
            return self._fit_whole_blocks(x, weight, layout)
        max_scale = (1 << layout.scale_bits) - 1
        coder = Coder(x, weight, 0, layout.max_code)
        grids = self._search_grids(coder, layout)
        d = round_to_float16(grids.steps.amax(0) / max_scale)
        scales = _to_integers(grids.steps, d, max_scale)
        # The offset of least error for the rounded step.
        offsets = (d * scales * grids.q).sub_(grids.x).div_(grids.w).nan_to_num_(0.0, 0.0, 0.0)
        dmin = round_to_float16(offsets.clamp_(min=0).amax(0) / max_scale)
        minimums = _to_integers(offsets, dmin, max_scale)
        changes = x.new_tensor(self.neighbours if weight is None else self.weighted_neighbours)
        near = torch.stack([scales, minimums])[:, None] + changes.T[..., None, None]
        near = near.clamp_(0, max_scale)
        steps, offsets = d * near[0], dmin * near[1]
        slopes = inverse(steps)
        sums = coder.sums(slopes, offsets * slopes)
        gains = _gains(sums, grids, steps, offsets)
        scales, minimums, *best_sums = best_of(gains, *near, *sums)
        d, dmin = _refit_d_and_dmin(CodeSums(*best_sums), grids, scales, minimums, d, dmin)
        codes = coder.codes(d * scales, dmin * minimums)
        return BlockParams(codes, scales.to(torch.int8), d.half(), minimums.byte(), dmin.half())

    def _fit_whole_blocks(
        self, x: torch.Tensor, weight: torch.Tensor | None, layout: BlockLayout
    ) -> BlockParams:
        """Blocks without sub-blocks, where dmin may be negative: x is [1, block_size, n]."""
        low = x.amin(-2)
        # From the least weight on, as a block far from 0 has all its digits in the minimum.
        lifted = Coder(x - low.unsqueeze(-2), weight, 0, layout.max_code)
        grids = self._search_grids(lifted, layout, signed=True)
        d, dmin = grids.steps.half(), (grids.offsets - low).half()
        codes = Coder(x, None, 0, layout.max_code).codes(d.float(), dmin.float())
        return BlockParams.without_sub_blocks(codes[0], d[0], dmin[0])

    def _search_grids(self, coder: Coder, layout: BlockLayout, signed: bool = False) -> _Grids:
        """The best step and offset of each sub-block.

        An offset is not negative unless `signed`; 0 then need not lie inside the grid.
        """
        x, weight, max_code = coder.x, coder.weight, layout.max_code
        shifts = self.end_shifts if weight is None else self.weighted_end_shifts
        low, high = extremes(x, layout.name)
        if not signed:
            low = low.clamp_(max=0)
        w = torch.full_like(low, float(x.shape[-2])) if weight is None else weight.sum(-2)
        total = x.sum(-2) if weight is None else (weight * x).sum(-2)
        grids = _Grids(low, high, total, w, total, (-total / w).nan_to_num_(0.0, 0.0, 0.0))
        slope = inverse((high - low) / max_code)
        level = -low * slope
        inwards = x.new_tensor(shifts).T.reshape(2, -1, 1, 1)
        stretch = max_code / (max_code - inwards.sum(0))
        sums = coder.sums(slope * stretch, (level - inwards[0]) * stretch)
        steps, offsets = _fit_grids(sums, grids, signed)
        gains = (steps * sums.qx).sub_(offsets * grids.x)
        steps, offsets, q = best_of(gains, steps, offsets, sums.q)
        for _ in range(self.refits):
            slope = inverse(steps)
            sums = coder.sums(slope[None], (offsets * slope)[None])
            steps, offsets = (fitted[0] for fitted in _fit_grids(sums, grids, signed))
            q = sums.q[0]
        return replace(grids, steps=steps, offsets=offsets, q=q)


@dataclass(frozen=True)
class _Grids:
    """Steps and offsets of sub-blocks before they are rounded, with their sums: [sub_blocks, n].

    `q` is of the codes that the steps were fitted to. `flat` is the best offset for a step of 0:
    the mean of x with its sign turned.
    """

    steps: torch.Tensor
    offsets: torch.Tensor
    q: torch.Tensor
    w: torch.Tensor
    x: torch.Tensor
    flat: torch.Tensor


def _fit_grids(
    sums: CodeSums, grids: _Grids, signed: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps and offsets of least error for these codes.

    The offset comes first, so that it can be clipped and the step fitted to what it is then.
    """
    first = sums.qq * grids.w
    determinant = torch.maximum(first - sums.q * sums.q, first * SINGULAR)
    offsets = (sums.q * sums.qx).sub_(sums.qq * grids.x)
    none = torch.eq(determinant, 0, out=first)  # no code but 0: these offsets are 0 / 0
    offsets = offsets.addcmul_(none, grids.flat).div_(determinant.add_(none))
    if not signed:
        offsets.clamp_(min=0)
    steps = (offsets * sums.q).add_(sums.qx).div_(sums.qq).nan_to_num_(0.0, 0.0, 0.0)
    return steps, offsets


def _refit_d_and_dmin(
    sums: CodeSums,
    grids: _Grids,
    scales: torch.Tensor,
    minimums: torch.Tensor,
    d: torch.Tensor,
    dmin: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The d and dmin of least error for each block, in float16; the old ones where none fits."""
    aa = (scales * scales).mul_(sums.qq).sum(0)
    ab = (scales * minimums).mul_(sums.q).sum(0)
    bb = (minimums * minimums).mul_(grids.w).sum(0)
    ax, bx = (scales * sums.qx).sum(0), (minimums * grids.x).sum(0)
    # dmin first, so that it can be clipped, and d for the rounded dmin. Without minimums: 0 / 0.
    new_dmin = (ab * ax).sub_(aa * bx).div_((aa * bb).sub_(ab * ab)).nan_to_num_(0.0, 0.0, 0.0)
    new_dmin = new_dmin.clamp_(min=0).half().float()
    new_d = (new_dmin * ab).add_(ax).div_(aa)
    good = fits_float16(new_d).logical_and_(new_dmin < FLOAT16_MAX)
    new_d = new_d.half().float().clamp_(min=FLOAT16_MIN)
    return torch.where(good, new_d, d), torch.where(good, new_dmin, dmin)


def _gains(
    sums: CodeSums, grids: _Grids, steps: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """How much less the squared error of each sub-block is than if its weights were 0."""
    gains = (offsets * sums.q).add_(sums.qx).mul_(2).sub_(steps * sums.qq).mul_(steps)
    return gains.sub_((offsets * grids.w).add_(grids.x, alpha=2).mul_(offsets))


def _to_integers(values: torch.Tensor, unit: torch.Tensor, largest: int) -> torch.Tensor:
    """`values` in whole units, from 0 to `largest`, as float32."""
    return (values * inverse(unit)).round_().clamp_(0, largest)
