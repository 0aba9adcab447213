"""The search for types with a minimum: weight = d * scale * code - dmin * minimum.

A grid is a pair of a step (d * scale) and an offset (dmin * minimum) for each sub-block. The
weights are rounded once to each of several starting grids, each grid is fitted to its codes by
least squares, and the best grid of a sub-block is refitted. Then the steps are rounded to integer
scales, the best offsets for these are computed and rounded to integer minimums, and the neighbours
of each pair of integers are tried. At last d and dmin are refitted to the integers, and the codes
are rounded for this d and dmin. All choices compare squared errors, computed from sums over
sub-blocks (least_squares.py has the formula and the notation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cgconvert.codecs.block_layout import BlockLayout, BlockParams
from cgconvert.codecs.search.least_squares import (
    FLOAT16_MAX,
    FLOAT16_MIN,
    CodeSums,
    GridRounder,
    Search,
    best_of,
    checked_extremes,
    is_positive_float16,
    reciprocal_or_zero,
    round_to_float16,
)
from cgconvert.lazy import torch

__all__ = ["ScaleMinSearch"]

SINGULAR = 1e-5
"""A determinant smaller than this fraction of its first term consists of rounding errors: all codes
of the sub-block are equal."""


@dataclass(frozen=True)
class ScaleMinSearch(Search):
    """A search for the step and the offset of each sub-block.

    Attributes:
        end_shifts: define the starting grids, a pair (shift of the lower end, shift of the upper
            end) each. The ends of the grid are at first the smallest and the largest weight;
            each is moved inwards by its shift times (max - min) / max_code, or outwards if the
            shift is negative.
        weighted_end_shifts: the same for blocks with an importance.
        refits: how often the best grid is fitted again to the codes that it gives.
        neighbours: changes of the integer (scale, minimum) that are tried.
        weighted_neighbours: the same for blocks with an importance.
    """

    end_shifts: Sequence[tuple[float, float]]
    weighted_end_shifts: Sequence[tuple[float, float]]
    refits: int = 0
    neighbours: Sequence[tuple[int, int]] = ((0, 0), (0, -1), (0, 1))
    weighted_neighbours: Sequence[tuple[int, int]] = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))

    def fit(
        self, x: torch.Tensor, importance: torch.Tensor | None, layout: BlockLayout
    ) -> BlockParams:
        if layout.scale_bits is None:
            return self._fit_without_sub_blocks(x, importance, layout)
        max_scale = (1 << layout.scale_bits) - 1
        rounder = GridRounder(x, importance, 0, layout.max_code)
        grids = self._search_grids(rounder, layout)
        d = round_to_float16(grids.steps.amax(0) / max_scale)
        scales = _to_integers(grids.steps, d, max_scale)
        # The offset of least error for the rounded step: (step wq - sum_wx) / sum_w.
        offsets = (d * scales * grids.wq).sub_(grids.sum_wx).div_(grids.sum_w)
        offsets = offsets.nan_to_num_(0.0, 0.0, 0.0)
        dmin = round_to_float16(offsets.clamp_(min=0).amax(0) / max_scale)
        minimums = _to_integers(offsets, dmin, max_scale)
        changes = x.new_tensor(self.neighbours if importance is None else self.weighted_neighbours)
        # [2, neighbours, sub_blocks, n]: the scales, then the minimums.
        neighbours = torch.stack([scales, minimums])[:, None] + changes.T[..., None, None]
        neighbours = neighbours.clamp_(0, max_scale)
        steps, offsets = d * neighbours[0], dmin * neighbours[1]
        inverse_steps = reciprocal_or_zero(steps)
        sums = rounder.sums(inverse_steps, offsets * inverse_steps)
        gains = _gains(sums, grids, steps, offsets)
        scales, minimums, *best_sums = best_of(gains, *neighbours, *sums)
        d, dmin = _refit_d_and_dmin(CodeSums(*best_sums), grids, scales, minimums, d, dmin)
        codes = rounder.codes(d * scales, dmin * minimums)
        return BlockParams(codes, scales.to(torch.int8), d.half(), minimums.byte(), dmin.half())

    def _fit_without_sub_blocks(
        self, x: torch.Tensor, importance: torch.Tensor | None, layout: BlockLayout
    ) -> BlockParams:
        """Quantize blocks x [1, block_size, n] that have only d and a dmin of either sign."""
        low = x.amin(-2)
        # The smallest weight is subtracted before sums are computed. Otherwise a block whose
        # weights lie far from 0 would lose its differences to float32's rounding.
        rounder = GridRounder(x - low.unsqueeze(-2), importance, 0, layout.max_code)
        grids = self._search_grids(rounder, layout, is_signed=True)
        d, dmin = grids.steps.half(), (grids.offsets - low).half()
        codes = GridRounder(x, None, 0, layout.max_code).codes(d.float(), dmin.float())
        return BlockParams.without_sub_blocks(codes[0], d[0], dmin[0])

    def _search_grids(
        self, rounder: GridRounder, layout: BlockLayout, is_signed: bool = False
    ) -> _Grids:
        """Find the best step and offset of each sub-block.

        Unless `is_signed`, offsets are at least 0, so a grid starts at 0 or below.
        """
        x, importance, max_code = rounder.x, rounder.importance, layout.max_code
        shifts = self.end_shifts if importance is None else self.weighted_end_shifts
        low, high = checked_extremes(x, layout.name)
        if not is_signed:
            low = low.clamp_(max=0)
        if importance is None:
            sum_w, sum_wx = torch.full_like(low, float(x.shape[-2])), x.sum(-2)
        else:
            sum_w, sum_wx = importance.sum(-2), (importance * x).sum(-2)
        zero_step_offsets = (-sum_wx / sum_w).nan_to_num_(0.0, 0.0, 0.0)
        # Steps, offsets and wq are filled in below.
        grids = _Grids(low, high, sum_wx, sum_w, sum_wx, zero_step_offsets)
        inverse_range = reciprocal_or_zero((high - low) / max_code)
        code_offset = -low * inverse_range
        inwards = x.new_tensor(shifts).T.reshape(2, -1, 1, 1)
        stretch = max_code / (max_code - inwards.sum(0))
        sums = rounder.sums(inverse_range * stretch, (code_offset - inwards[0]) * stretch)
        steps, offsets = _fit_grids(sums, grids, is_signed)
        gains = (steps * sums.wqx).sub_(offsets * grids.sum_wx)
        steps, offsets, wq = best_of(gains, steps, offsets, sums.wq)
        for _ in range(self.refits):
            inverse_steps = reciprocal_or_zero(steps)
            sums = rounder.sums(inverse_steps[None], (offsets * inverse_steps)[None])
            steps, offsets = (values[0] for values in _fit_grids(sums, grids, is_signed))
            wq = sums.wq[0]
        return replace(grids, steps=steps, offsets=offsets, wq=wq)


@dataclass(frozen=True)
class _Grids:
    """Steps and offsets of sub-blocks before they become integers: float32 [sub_blocks, n] each.

    Attributes:
        steps: the distance of two neighbouring values.
        offsets: what is subtracted from step * code.
        wq: the sum of w q over the codes q that the grid was fitted to.
        sum_w: the sum of the importance.
        sum_wx: the sum of importance times weight.
        zero_step_offsets: the best offset if the step is 0, which is the weighted mean of -x.
    """

    steps: torch.Tensor
    offsets: torch.Tensor
    wq: torch.Tensor
    sum_w: torch.Tensor
    sum_wx: torch.Tensor
    zero_step_offsets: torch.Tensor


def _fit_grids(
    sums: CodeSums, grids: _Grids, is_signed: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the steps and offsets of least error for these codes, [grids, sub_blocks, n] each.

    They solve the normal equations of the error:

        offset = (wq wqx - wqq sum_wx) / (wqq sum_w - wq^2)
        step = (wqx + offset wq) / wqq

    The offset is computed first, because the step has to be fitted to the offset after clipping.
    """
    first_term = sums.wqq * grids.sum_w
    determinant = torch.maximum(first_term - sums.wq * sums.wq, first_term * SINGULAR)
    offsets = (sums.wq * sums.wqx).sub_(sums.wqq * grids.sum_wx)
    # Where all codes are 0 the offset would be 0 / 0; it becomes the one of a step of 0.
    has_only_zeros = torch.eq(determinant, 0, out=first_term)
    offsets = offsets.addcmul_(has_only_zeros, grids.zero_step_offsets)
    offsets = offsets.div_(determinant.add_(has_only_zeros))
    if not is_signed:
        offsets.clamp_(min=0)
    steps = (offsets * sums.wq).add_(sums.wqx).div_(sums.wqq).nan_to_num_(0.0, 0.0, 0.0)
    return steps, offsets


def _refit_d_and_dmin(
    sums: CodeSums,
    grids: _Grids,
    scales: torch.Tensor,
    minimums: torch.Tensor,
    d: torch.Tensor,
    dmin: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the d and dmin [n] of least error for the integers, rounded to float16.

    The weights are d a - dmin b, with a = scale * code and b = minimum. With the sums over a block
    waa = sum(w a^2), wab = sum(w a b), wbb = sum(w b^2), wax = sum(w a x) and wbx = sum(w b x),

        dmin = (wab wax - waa wbx) / (waa wbb - wab^2)
        d = (wax + dmin wab) / waa

    dmin is computed first, because d has to be fitted to dmin after clipping and rounding. Blocks
    whose result does not fit into float16 keep the given `d` and `dmin`.
    """
    waa = (scales * scales).mul_(sums.wqq).sum(0)
    wab = (scales * minimums).mul_(sums.wq).sum(0)
    wbb = (minimums * minimums).mul_(grids.sum_w).sum(0)
    wax, wbx = (scales * sums.wqx).sum(0), (minimums * grids.sum_wx).sum(0)
    determinant = (waa * wbb).sub_(wab * wab)
    new_dmin = (wab * wax).sub_(waa * wbx).div_(determinant)
    new_dmin = new_dmin.nan_to_num_(0.0, 0.0, 0.0)  # 0 / 0 if all minimums are 0
    new_dmin = new_dmin.clamp_(min=0).half().float()
    new_d = (new_dmin * wab).add_(wax).div_(waa)
    is_valid = is_positive_float16(new_d).logical_and_(new_dmin < FLOAT16_MAX)
    new_d = new_d.half().float().clamp_(min=FLOAT16_MIN)
    return torch.where(is_valid, new_d, d), torch.where(is_valid, new_dmin, dmin)


def _gains(
    sums: CodeSums, grids: _Grids, steps: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """Compute how much smaller the squared error of each sub-block is than with all weights 0."""
    gains = (offsets * sums.wq).add_(sums.wqx).mul_(2).sub_(steps * sums.wqq).mul_(steps)
    return gains.sub_((offsets * grids.sum_w).add_(grids.sum_wx, alpha=2).mul_(offsets))


def _to_integers(values: torch.Tensor, unit: torch.Tensor, max_integer: int) -> torch.Tensor:
    """Round values / unit to integers from 0 to `max_integer`, as float32."""
    return (values * reciprocal_or_zero(unit)).round_().clamp_(0, max_integer)
