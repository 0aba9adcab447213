"""The search for types without a minimum: weight = d * scale * (code - zero_point).

Scales are signed. The weights are rounded once with each of several starting steps, and each step
is fitted to its codes by least squares; the best step of a sub-block is refitted. Then the scales
are rounded to integers, and the neighbours of each integer are tried too. At last d is refitted to
the integer scales, and the codes are rounded for this d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cgconvert.codecs.block_layout import BlockLayout, BlockParams
from cgconvert.codecs.search.least_squares import (
    CodeSums,
    GridRounder,
    Search,
    best_of,
    checked_extremes,
    is_positive_float16,
    larger_mask,
    reciprocal_or_zero,
    round_to_float16,
    select,
)
from cgconvert.lazy import torch

__all__ = ["ScaleSearch"]


@dataclass(frozen=True)
class ScaleSearch(Search):
    """A search for the step of each sub-block, where step = d * scale.

    Attributes:
        extreme_codes: define the starting steps. With the code c, the weight of largest magnitude
            divided by c is the step, so that this weight gets the code c, counted from the zero
            point, before it is clipped. If c lies beyond the range of codes, large weights are
            clipped and all others have a finer step.
        weighted_extreme_codes: the same for blocks with an importance.
        refits: how often the best step is fitted again to the codes that it gives.
    """

    extreme_codes: Sequence[float]
    weighted_extreme_codes: Sequence[float]
    refits: int = 1

    def fit(
        self, x: torch.Tensor, importance: torch.Tensor | None, layout: BlockLayout
    ) -> BlockParams:
        zero_point = layout.zero_point
        rounder = GridRounder(x, importance, -zero_point, layout.max_code - zero_point)
        steps = self._search_steps(rounder, layout.name)
        if layout.scale_bits is None:
            d = round_to_float16(steps)
            codes = rounder.codes(d, zero_point=zero_point)
            return BlockParams.without_sub_blocks(codes[0], d[0].half())
        lowest, highest = -(1 << layout.scale_bits - 1), (1 << layout.scale_bits - 1) - 1
        # The step of largest magnitude gets the lowest integer, whatever its sign, because the
        # signed range reaches one further below 0 than above.
        d = round_to_float16(_larger_magnitude(steps.amin(0), steps.amax(0)) / lowest)
        scales = (steps * reciprocal_or_zero(d)).round_().clamp_(lowest, highest)
        neighbours = scales + scales.new_tensor([0, -1, 1])[:, None, None]
        neighbours = neighbours.clamp_(lowest, highest)
        steps = d * neighbours
        sums = rounder.sums(reciprocal_or_zero(steps))
        gains = (sums.wqx * 2).sub_(sums.wqq * steps).mul_(steps)
        scales, wqq, wqx = best_of(gains, neighbours, sums.wqq, sums.wqx)
        d = _refit_d(wqq, wqx, scales, d)
        codes = rounder.codes(d * scales, zero_point=zero_point)
        return BlockParams(codes, scales.to(torch.int8), d.half())

    def _search_steps(self, rounder: GridRounder, type_name: str) -> torch.Tensor:
        """Find the best step of each sub-block, of either sign: float32 [sub_blocks, n]."""
        extreme_codes = (
            self.extreme_codes if rounder.importance is None else self.weighted_extreme_codes
        )
        extremes = _larger_magnitude(*checked_extremes(rounder.x, type_name))
        inverse_extremes = reciprocal_or_zero(extremes)
        codes = inverse_extremes.new_tensor(extreme_codes)[:, None, None]
        sums = rounder.sums(inverse_extremes * codes)
        steps = _fit_steps(sums)
        gains = steps * sums.wqx
        steps = best_of(gains, steps)[0]
        for _ in range(self.refits):
            steps = _fit_steps(rounder.sums(reciprocal_or_zero(steps)[None]))[0]
        return steps


def _larger_magnitude(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Return `low` or `high`, whichever has the larger magnitude; `low` if they are equal."""
    return select(high, low, larger_mask(high, -low))


def _fit_steps(sums: CodeSums) -> torch.Tensor:
    """Return the step of least error for these codes; 0 if all codes are 0."""
    return (sums.wqx / sums.wqq).nan_to_num_(0.0, 0.0, 0.0)


def _refit_d(
    wqq: torch.Tensor, wqx: torch.Tensor, scales: torch.Tensor, d: torch.Tensor
) -> torch.Tensor:
    """Return the d of least error for the integer scales, rounded to float16.

    Args:
        wqq: sums over sub-blocks, [sub_blocks, n].
        wqx: sums over sub-blocks, [sub_blocks, n].
        scales: integers as float32, [sub_blocks, n].
        d: [n]; it stays where the new one is 0 or not a finite float16.
    """
    refitted = (scales * wqx).sum(0) / (scales * scales).mul_(wqq).sum(0)
    return torch.where(is_positive_float16(refitted.abs()), round_to_float16(refitted), d)
