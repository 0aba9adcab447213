"""The search for types without a minimum: weight = d * scale * (code - zero_point).

Scales are signed. Many starting steps are rounded once each and fitted by least squares, the best
of each sub-block is refitted; scales are rounded to their bits and their neighbours tried; then d
is refitted to the rounded scales, and the codes to d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cgconvert.codecs.block_layout import BlockLayout, BlockParams
from cgconvert.codecs.search.least_squares import (
    Coder,
    CodeSums,
    best_of,
    exceeds,
    extremes,
    fits_float16,
    inverse,
    round_to_float16,
    select,
)
from cgconvert.codecs.search.strategy import Search

__all__ = ["ScaleSearch"]


@dataclass(frozen=True)
class ScaleSearch(Search):
    """Searches the step of each sub-block.

    Attributes:
        extreme_codes: the starting steps, as the code, counted from the zero point, that the weight
            of largest magnitude gets before it is clipped. Below -zero_point the step is smaller
            than the range of the weights asks for.
        weighted_extreme_codes: the same where squared errors do not count alike.
        refits: how often the best step is fitted again to the codes it gives.
    """

    extreme_codes: Sequence[float]
    weighted_extreme_codes: Sequence[float]
    refits: int = 1

    def fit(self, x: torch.Tensor, weight: torch.Tensor | None, layout: BlockLayout) -> BlockParams:
        zero_point = layout.zero_point
        coder = Coder(x, weight, -zero_point, layout.max_code - zero_point)
        steps = self._search_steps(coder, layout.name)
        if layout.scale_bits is None:
            d = round_to_float16(steps)
            codes = coder.codes(d, zero_point=zero_point)
            return BlockParams.without_sub_blocks(codes[0], d[0].half())
        lowest, highest = -(1 << layout.scale_bits - 1), (1 << layout.scale_bits - 1) - 1
        # The scale of largest magnitude becomes the lowest integer, whatever its sign.
        d = round_to_float16(_larger_magnitude(steps.amin(0), steps.amax(0)) / lowest)
        scales = (steps * inverse(d)).round_().clamp_(lowest, highest)
        near = (scales + scales.new_tensor([0, -1, 1])[:, None, None]).clamp_(lowest, highest)
        steps = d * near
        sums = coder.sums(inverse(steps))
        gains = (sums.qx * 2).sub_(sums.qq * steps).mul_(steps)
        scales, qq, qx = best_of(gains, near, sums.qq, sums.qx)
        d = _refit_d(qq, qx, scales, d)
        codes = coder.codes(d * scales, zero_point=zero_point)
        return BlockParams(codes, scales.to(torch.int8), d.half())

    def _search_steps(self, coder: Coder, name: str) -> torch.Tensor:
        """The best step of each sub-block, of either sign: float32 [sub_blocks, n]."""
        extreme_codes = self.extreme_codes if coder.weight is None else self.weighted_extreme_codes
        slopes = inverse(_larger_magnitude(*extremes(coder.x, name)))
        sums = coder.sums(slopes * slopes.new_tensor(extreme_codes)[:, None, None])
        steps = _fit_steps(sums)
        steps = best_of(steps * sums.qx, steps)[0]
        for _ in range(self.refits):
            steps = _fit_steps(coder.sums(inverse(steps)[None]))[0]
        return steps


def _larger_magnitude(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Whichever of the two has the larger magnitude."""
    return select(high, low, exceeds(high, -low))


def _fit_steps(sums: CodeSums) -> torch.Tensor:
    """The steps of least error for these codes."""
    return (sums.qx / sums.qq).nan_to_num_(0.0, 0.0, 0.0)


def _refit_d(
    qq: torch.Tensor, qx: torch.Tensor, scales: torch.Tensor, d: torch.Tensor
) -> torch.Tensor:
    """The d of least error for each block, in float16; the old one where there is none."""
    best = (scales * qx).sum(0) / (scales * scales).mul_(qq).sum(0)
    return torch.where(fits_float16(best.abs()), round_to_float16(best), d)
