"""The search for blocks with a zero point: weight = d * (code - zero_point), both integers.

For several zero points, each with several starting steps, the codes are rounded once and the step
is fitted by least squares; the best is refitted, with the neighbours of its zero point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cgconvert.codecs.block_layout import BlockLayout, BlockParams
from cgconvert.codecs.search.least_squares import (
    Coder,
    best_of,
    extremes,
    inverse,
    round_to_float16,
)
from cgconvert.codecs.search.strategy import Search

__all__ = ["ZeroPointSearch"]

NEIGHBOURS = (0, -1, 1)
"""Changes of a zero point that are tried."""

Candidate = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""A gain, a step and a zero point for each block, [1, n]."""


@dataclass(frozen=True)
class ZeroPointSearch(Search):
    """Searches the step and the zero point of each block; its range always holds 0.

    Attributes:
        step_shares: the starting steps, as shares of the step that the block's range asks for.
        weighted_step_shares: the same where squared errors do not count alike: there an end of the
            range that counts little may be clipped.
        refits: how often the best step and zero point are fitted again.
    """

    step_shares: Sequence[float] = (1.0, 0.92, 1.08, 0.84)
    weighted_step_shares: Sequence[float] = (1.0, 0.92, 1.08, 0.84, 0.76, 0.66)
    refits: int = 2

    def fit(self, x: torch.Tensor, weight: torch.Tensor | None, layout: BlockLayout) -> BlockParams:
        max_code = layout.max_code
        low, high = extremes(x, layout.name)
        low, high = low.clamp_(max=0), high.clamp_(min=0)
        slopes = inverse(high - low) * max_code
        zero_points = (-low * slopes).round_()
        coder = Coder(x, weight, 0, max_code)
        shares = self.step_shares if weight is None else self.weighted_step_shares
        best = _best(_candidates(coder, slopes, zero_points, shares, max_code))
        for _ in range(self.refits):
            candidates = _candidates(coder, inverse(best[1]), best[2], (1.0,), max_code)
            best = _best([best, *candidates])
        d, zero_points = round_to_float16(best[1]), best[2]
        _clip_around(coder, zero_points, max_code)
        codes = coder.codes(d, zero_point=zero_points[:, None])
        return BlockParams.with_zero_points(codes[0], d[0].half(), zero_points[0].byte())


def _candidates(
    coder: Coder,
    slopes: torch.Tensor,
    zero_points: torch.Tensor,
    step_shares: Sequence[float],
    max_code: int,
) -> list[Candidate]:
    """The fitted steps for every neighbour of the zero points, from every share of the step."""
    candidates = []
    for change in NEIGHBOURS:
        near = (zero_points + change).clamp_(0, max_code)
        _clip_around(coder, near, max_code)
        for share in step_shares:
            sums = coder.sums((slopes / share)[None])
            steps = (sums.qx[0] / sums.qq[0]).nan_to_num_(0.0, 0.0, 0.0).clamp_(min=0)
            candidates.append((steps * sums.qx[0], steps, near))
    return candidates


def _clip_around(coder: Coder, zero_points: torch.Tensor, max_code: int) -> None:
    """Clip codes, which count from the zero point, to those from 0 to `max_code`."""
    coder.low, coder.high = (-zero_points)[:, None], (max_code - zero_points)[:, None]


def _best(candidates: list[Candidate]) -> Candidate:
    """The candidate of largest gain, block by block."""
    gains, steps, zero_points = (torch.stack(values) for values in zip(*candidates, strict=True))
    gains, steps, zero_points = best_of(gains, gains, steps, zero_points)
    return gains, steps, zero_points
