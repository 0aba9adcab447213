"""The interface of a search, and the least-squares sums that all searches compare grids with.

A grid is a step and an offset for each sub-block; the code q stands for the weight
step * q - offset. Notation: x are the weights and w the importance (how much each squared error
counts; 1 if there is none), both float32 [..., sub_block_size, n]. `wq`, `wqq`, `wqx`, `sum_w` and
`sum_wx` are the sums of w q, w q^2, w q x, w and w x over the weights of a sub-block, [..., n]. The
squared error of any grid follows from them:

    sum(w (step q - offset - x)^2) = step^2 wqq - 2 step offset wq + offset^2 sum_w
                                     - 2 step wqx + 2 offset sum_wx + sum(w x^2)

Its minimum without an offset is at step = wqx / wqq, which lowers the error from sum(w x^2) by
wqx^2 / wqq = step wqx. Searches call such a decrease the gain and look for the largest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from cgconvert.codecs.block_layout import BlockLayout, BlockParams, unrepresentable_error
from cgconvert.lazy import torch

__all__ = [
    "FLOAT16_MAX",
    "FLOAT16_MIN",
    "CodeSums",
    "GridRounder",
    "Search",
    "best_of",
    "checked_extremes",
    "is_positive_float16",
    "larger_mask",
    "reciprocal_or_zero",
    "round_to_float16",
    "select",
]

FLOAT16_MIN, FLOAT16_MAX = 2.0**-24, 65504.0
"""The smallest float16 above 0 and the largest finite one."""

MAX_MAGNITUDE = 1e12
"""Weights must be smaller: no type can hold larger ones, and products of sums could overflow."""

CACHED_WEIGHTS = 1 << 16
"""Weights that are rounded at once on a CPU, so that they, their codes and a product stay in a
core's cache."""

CodeBound = Any
"""A number, or a tensor [1, 1, n] if blocks differ. Any, as clamp_ has an overload for either."""


class Search(ABC):
    """A search for the quantization parameters of least squared error.

    A search object holds settings only and no state, so that one object can be used in every worker
    process.
    """

    @abstractmethod
    def fit(
        self, x: torch.Tensor, importance: torch.Tensor | None, layout: BlockLayout
    ) -> BlockParams:
        """Quantize n blocks.

        Args:
            x: the weights of the blocks, float32 [sub_blocks, sub_block_size, n].
            importance: how much each squared error counts, of the shape of x; None if all count the
                same.
            layout: gives the range of the codes and the bits of the scales.

        Raises:
            InputError: a weight is not finite or far beyond what a block can hold.
        """


class CodeSums(NamedTuple):
    """The sums of w q, w q^2 and w q x over each sub-block; see the formula of this module."""

    wq: torch.Tensor
    wqq: torch.Tensor
    wqx: torch.Tensor


class GridRounder:
    """Rounds the weights x to the codes of many grids, always in the same two buffers.

    Args:
        x: float32 [sub_blocks, sub_block_size, n].
        importance: how much each squared error counts, of the shape of x; None if all count the
            same.
        lowest_code: codes below it are clipped to it.
        highest_code: codes above it are clipped to it.
    """

    def __init__(
        self,
        x: torch.Tensor,
        importance: torch.Tensor | None,
        lowest_code: CodeBound,
        highest_code: CodeBound,
    ) -> None:
        self.x, self.importance = x, importance
        self.lowest_code, self.highest_code = lowest_code, highest_code
        # A CPU takes a group of sub-blocks at a time; a GPU takes all of them.
        group_size = max(1, CACHED_WEIGHTS // x[0].numel()) if x.device.type == "cpu" else len(x)
        self._groups = [slice(start, start + group_size) for start in range(0, len(x), group_size)]
        self._code_buffer = torch.empty_like(x[:group_size])
        self._product_buffer = torch.empty_like(x[:group_size])

    def sums(
        self, inverse_steps: torch.Tensor, code_offsets: torch.Tensor | None = None
    ) -> CodeSums:
        """Round x to each of several grids and sum the codes.

        A code is round(x * inverse_step + code_offset), clipped; code_offset is offset / step.

        Args:
            inverse_steps: float32 [grids, sub_blocks, n].
            code_offsets: of the same shape; None if offsets are 0. Then `wq` is left undefined,
                because only the fit of an offset needs it.

        Returns:
            The sums, float32 [grids, sub_blocks, n] each.
        """
        out = inverse_steps.new_empty(3, *inverse_steps.shape)
        for group in self._groups:
            x = self.x[group]
            importance = None if self.importance is None else self.importance[group]
            group_offsets = (
                [None] * len(inverse_steps) if code_offsets is None else code_offsets[:, group]
            )
            for inverse_step, code_offset, wq, wqq, wqx in zip(
                inverse_steps[:, group], group_offsets, *out[:, :, group], strict=True
            ):
                codes = self._round(x, inverse_step, code_offset)
                product = self._product_buffer[: len(x)]
                if importance is None:
                    weighted_codes = codes
                else:
                    weighted_codes = torch.mul(codes, importance, out=product)
                if code_offset is not None:
                    torch.sum(weighted_codes, -2, out=wq)
                if importance is None:
                    torch.sum(torch.mul(codes, codes, out=product), -2, out=wqq)
                else:
                    torch.sum(codes.mul_(weighted_codes), -2, out=wqq)
                torch.sum(weighted_codes.mul_(x), -2, out=wqx)
        return CodeSums(*out)

    def codes(
        self,
        steps: torch.Tensor,
        offsets: torch.Tensor | None = None,
        zero_point: float | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Round x to one grid: the codes whose values step * code - offset are nearest.

        Args:
            steps: float32 [sub_blocks, n].
            offsets: float32 [sub_blocks, n]; None if they are 0.
            zero_point: added to the codes, because signed codes are stored from 0 up; a number or
                [1, 1, n].

        Returns:
            The codes, uint8 of the shape of x.
        """
        inverse_steps = reciprocal_or_zero(steps)
        code_offsets = None if offsets is None else offsets * inverse_steps
        stored_codes = torch.empty_like(self.x, dtype=torch.uint8)
        for group in self._groups:
            code_offset = None if code_offsets is None else code_offsets[group]
            codes = self._round(self.x[group], inverse_steps[group], code_offset)
            stored_codes[group] = codes if zero_point is None else codes.add_(zero_point)
        return stored_codes

    def _round(
        self, x: torch.Tensor, inverse_steps: torch.Tensor, code_offsets: torch.Tensor | None
    ) -> torch.Tensor:
        """Round a group of sub-blocks x [group, sub_block_size, n] to codes, float32 of its shape.

        The codes lie in a buffer that the next call overwrites.
        """
        codes = torch.mul(x, inverse_steps.unsqueeze(-2), out=self._code_buffer[: len(x)])
        if code_offsets is not None:
            codes += code_offsets.unsqueeze(-2)
        return codes.round_().clamp_(self.lowest_code, self.highest_code)


def reciprocal_or_zero(scales: torch.Tensor) -> torch.Tensor:
    """Compute 1 / scales, with 0 instead of an infinite or undefined result."""
    return scales.reciprocal().nan_to_num_(0.0, 0.0, 0.0)


def checked_extremes(x: torch.Tensor, type_name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the smallest and the largest weight of each sub-block, [sub_blocks, n].

    Raises InputError, which names the type `type_name`, if a weight is NaN, infinite or larger than
    any type can hold.
    """
    low, high = x.amin(-2), x.amax(-2)
    if not (torch.maximum(high, -low) < MAX_MAGNITUDE).all():  # false for NaN too
        raise unrepresentable_error(type_name)
    return low, high


def round_to_float16(scales: torch.Tensor) -> torch.Tensor:
    """Round float32 scales to float16 and return them as float32.

    A scale other than 0 becomes the smallest float16 of its sign rather than 0.
    """
    half = scales.half().float()
    smallest = torch.copysign(torch.full_like(scales, FLOAT16_MIN), scales)
    return torch.where((half == 0) & (scales != 0), smallest, half)


def is_positive_float16(scales: torch.Tensor) -> torch.Tensor:
    """Tell for each scale whether it is above 0 and below the largest float16; NaN is not."""
    return (scales > 0) & (scales < FLOAT16_MAX)


def select(if_one: torch.Tensor, if_zero: torch.Tensor, float_mask: torch.Tensor) -> torch.Tensor:
    """Return `if_one` where `float_mask` is 1 and `if_zero` where it is 0; all are finite float32.

    Interpolation by 0 or 1 is exact. On a CPU it is several times faster than torch.where, because
    torch does not vectorize operations on booleans there.
    """
    return torch.lerp(if_zero, if_one, float_mask)


def larger_mask(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return 1 where `left` is larger than `right`, else 0, as the float32 mask of `select`."""
    return torch.gt(left, right, out=torch.empty_like(left))


def best_of(gains: torch.Tensor, *candidates: torch.Tensor) -> list[torch.Tensor]:
    """Select the candidate of largest gain, element by element; the first one if gains are equal.

    `gains` and each of `candidates` are float32 [number of candidates, ...]; results are [...].
    """
    best_gain, *best = gains[0], *(values[0] for values in candidates)
    for gain, *current in zip(gains[1:], *(values[1:] for values in candidates), strict=True):
        mask = larger_mask(gain, best_gain)
        best_gain = torch.maximum(gain, best_gain)
        best = [select(new, old, mask) for new, old in zip(current, best, strict=True)]
    return best
