"""The search for blocks with a zero point: weight = d * (code - zero_point), both integers.

The weights are rounded once for each of several zero points and steps, and each step is fitted to
its codes by least squares. The best pair is refitted, with the neighbours of its zero point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cgconvert.codecs.block_layout import BlockLayout, BlockParams
from cgconvert.codecs.search.least_squares import (
    GridRounder,
    Search,
    best_of,
    checked_extremes,
    reciprocal_or_zero,
    round_to_float16,
)
from cgconvert.lazy import torch

__all__ = ["ZeroPointSearch"]

NEIGHBOURS = (0, -1, 1)
"""Changes of a zero point that are tried."""


class _Candidate(NamedTuple):
    """A step and a zero point for each block, and how much they lower its error: [1, n] each."""

    gains: torch.Tensor
    steps: torch.Tensor
    zero_points: torch.Tensor


@dataclass(frozen=True)
class ZeroPointSearch(Search):
    """A search for the step and the zero point of each block.

    The zero point is a code, so the values that a block can hold always include 0.

    Attributes:
        step_factors: define the starting steps, as multiples of the step (max - min) / max_code of
            the block's weights. Below 1 the ends of the range are clipped.
        weighted_step_factors: the same for blocks with an importance. They go lower, because
            weights of little importance may be clipped.
        refits: how often the best step and zero point are fitted again.
    """

    step_factors: Sequence[float] = (1.0, 0.92, 1.08, 0.84)
    weighted_step_factors: Sequence[float] = (1.0, 0.92, 1.08, 0.84, 0.76, 0.66)
    refits: int = 2

    def fit(
        self, x: torch.Tensor, importance: torch.Tensor | None, layout: BlockLayout
    ) -> BlockParams:
        max_code = layout.max_code
        low, high = checked_extremes(x, layout.name)
        low, high = low.clamp_(max=0), high.clamp_(min=0)
        inverse_steps = reciprocal_or_zero(high - low) * max_code
        zero_points = (-low * inverse_steps).round_()
        rounder = GridRounder(x, importance, 0, max_code)
        factors = self.step_factors if importance is None else self.weighted_step_factors
        best = _best(_candidates(rounder, inverse_steps, zero_points, factors, max_code))
        for _ in range(self.refits):
            inverse_steps = reciprocal_or_zero(best.steps)
            refitted = _candidates(rounder, inverse_steps, best.zero_points, (1.0,), max_code)
            best = _best([best, *refitted])
        d, zero_points = round_to_float16(best.steps), best.zero_points
        _set_code_range(rounder, zero_points, max_code)
        codes = rounder.codes(d, zero_point=zero_points[:, None])
        return BlockParams.with_zero_points(codes[0], d[0].half(), zero_points[0].byte())


def _candidates(
    rounder: GridRounder,
    inverse_steps: torch.Tensor,
    zero_points: torch.Tensor,
    step_factors: Sequence[float],
    max_code: int,
) -> list[_Candidate]:
    """Fit a step for each neighbour of the zero points and each multiple of the step.

    `inverse_steps` and `zero_points` are float32 [1, n].
    """
    candidates = []
    for change in NEIGHBOURS:
        neighbours = (zero_points + change).clamp_(0, max_code)
        _set_code_range(rounder, neighbours, max_code)
        for factor in step_factors:
            sums = rounder.sums((inverse_steps / factor)[None])
            steps = (sums.wqx[0] / sums.wqq[0]).nan_to_num_(0.0, 0.0, 0.0).clamp_(min=0)
            candidates.append(_Candidate(steps * sums.wqx[0], steps, neighbours))
    return candidates


def _set_code_range(rounder: GridRounder, zero_points: torch.Tensor, max_code: int) -> None:
    """Let `rounder` clip its codes, which count from the zero point, to stored 0 to `max_code`."""
    rounder.lowest_code = (-zero_points)[:, None]
    rounder.highest_code = (max_code - zero_points)[:, None]


def _best(candidates: list[_Candidate]) -> _Candidate:
    """Select the candidate of largest gain for each block."""
    gains, steps, zero_points = (torch.stack(values) for values in zip(*candidates, strict=True))
    return _Candidate(*best_of(gains, gains, steps, zero_points))
