"""Round-to-nearest rules: scales and codes are computed from a block's weights without a search.

Each rule also defines a bound of its error, which verification compares stored blocks with. The
bound is half a step, and more if the rule clips weights or rounds the scale to float16
(docs/verify.md).

In this module `scales` are the distances of two neighbouring values, and `levels` are codes counted
from the zero point: weight = scale * level.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from cgconvert.codecs.block_layout import BlockLayout, BlockParams, blocks_first
from cgconvert.lazy import torch

__all__ = ["AbsMaxRounding", "ExtremeRounding", "MinMaxRounding", "Rounding", "ggml_reciprocal"]

HALF_ULP, TINY = 2.0**-11, 2.0**-25
"""The largest error of rounding to float16: relative for normal numbers, absolute for subnormal
ones."""

SLACK = 1 + 2.0**-10
"""Factor of a bound that allows for the float32 arithmetic of an encoder, whose error is about
2^-17 of a step at 8 bits."""

BELOW_HALF = 0.49999997
"""The largest float32 below 0.5. trunc(x + copysign(BELOW_HALF, x)) equals C's roundf, which rounds
ties away from zero; with 0.5 instead, BELOW_HALF itself would be rounded to 1."""


class Rounding(ABC):
    """A rule for the scale of a block and the code of each weight."""

    @abstractmethod
    def fit(self, blocks: torch.Tensor, layout: BlockLayout) -> BlockParams:
        """Quantize blocks, float32 [n, block_size].

        A weight that is not finite makes the d of its block infinite or NaN; `BlockLayout.pack`
        refuses it. The codes [sub_blocks, sub_block_size, n] are a transposed view: in memory the
        codes of a block lie together.
        """

    def error_ratio(
        self, params: BlockParams, blocks: torch.Tensor, layout: BlockLayout
    ) -> torch.Tensor:
        """Compare stored parameters with the source's blocks, in multiples of the error bound.

        Args:
            params: the stored parameters of n blocks.
            blocks: the source's weights, float32 [n, block_size].
            layout: the layout of the stored blocks.

        Returns:
            float32 [n]: the deviation of the scale from the rule's scale divided by its bound, or
            the largest error of a weight divided by its bound, whichever is larger; infinite for a
            block with a NaN.
        """
        scales = params.d.float()[:, None]
        zero_points: torch.Tensor | int = layout.zero_point
        if params.minimums is not None:
            zero_points = params.minimums[0].float()[:, None]
        levels = blocks_first(params.codes).float() - zero_points
        expected_scales = self._scales(blocks, layout).abs()
        scale_bound = (expected_scales * HALF_ULP).clamp(min=TINY) * SLACK
        scale_ratio = (scales.abs() - expected_scales).abs() / scale_bound
        error = self._without_clipping(blocks - levels * scales, levels, scales)
        bound = self._bound(levels, scales.abs(), scale_bound, layout)
        weight_ratio = (error.abs_() / bound).amax(1)
        return torch.maximum(weight_ratio, scale_ratio.squeeze(1)).nan_to_num_(nan=math.inf)

    @abstractmethod
    def _scales(self, blocks: torch.Tensor, layout: BlockLayout) -> torch.Tensor:
        """Compute the scale of each block before it is rounded to float16: float32 [n, 1]."""

    def _without_clipping(
        self, error: torch.Tensor, levels: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        """Reduce the error of weights that the rule clips, so that `_bound` holds for them too.

        By default a rule clips no weight.
        """
        return error

    def _bound(
        self,
        levels: torch.Tensor,
        scales: torch.Tensor,
        scale_bound: torch.Tensor,
        layout: BlockLayout,
    ) -> torch.Tensor:
        """Compute the largest error that each weight may have, float32 [n, block_size].

        By default codes are computed with the scale before it is rounded to float16. So a weight of
        level l may be off by half a step and by l times the rounding error of the scale.

        Args:
            levels: stored codes minus the zero point, [n, block_size].
            scales: magnitudes of the stored scales, [n, 1].
            scale_bound: the largest rounding error of each scale, [n, 1].
            layout: the layout of the stored blocks.
        """
        return levels.abs() * scale_bound + (scales + scale_bound) / 2 * SLACK


class ExtremeRounding(Rounding):
    """4 bits: the weight of largest magnitude gets the code 0, so its level is -8.

    If this weight is positive, the scale is negative.

    Equal to quantize_row_q4_0_ref of llama.cpp (ggml/src/ggml-quants.c).
    """

    def fit(self, blocks: torch.Tensor, layout: BlockLayout) -> BlockParams:
        scales = self._scales(blocks, layout)
        reciprocals, overflows = ggml_reciprocal(scales)
        codes = (blocks * reciprocals).add_(8.5).to(torch.int8).clamp_(max=15)  # truncates
        if overflows.any():
            codes.masked_fill_(overflows, 0)
        d = scales.half().squeeze(1)
        return BlockParams.without_sub_blocks(codes.view(torch.uint8).t(), d)

    def _scales(self, blocks: torch.Tensor, layout: BlockLayout) -> torch.Tensor:
        return _extreme(blocks) / -8

    def _without_clipping(
        self, error: torch.Tensor, levels: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        # Levels are -8 to 7. A weight of almost 8 steps is clipped to 7, so its error is up to a
        # full step instead of half a step.
        is_beyond = error.signbit() == scales.signbit()  # a scale may be -0
        return torch.where((levels == 7) & is_beyond, error / 2, error)


class AbsMaxRounding(Rounding):
    """8 bits: the weight of largest magnitude gets the level 127 or -127, so codes are 1 to 255.

    Equal to quantize_row_q8_0_ref of llama.cpp (ggml/src/ggml-quants.c).
    """

    def fit(self, blocks: torch.Tensor, layout: BlockLayout) -> BlockParams:
        scales = self._scales(blocks, layout)
        codes = blocks * ggml_reciprocal(scales)[0]
        codes += torch.copysign(torch.full_like(codes[:1, :1], BELOW_HALF), codes)
        stored_codes = codes.to(torch.int8).view(torch.uint8).bitwise_xor_(128)  # truncates
        return BlockParams.without_sub_blocks(stored_codes.t(), scales.half().squeeze(1))

    def _scales(self, blocks: torch.Tensor, layout: BlockLayout) -> torch.Tensor:
        return blocks.abs().amax(1, keepdim=True) / 127


class MinMaxRounding(Rounding):
    """Asymmetric: the range from the smallest to the largest weight is divided into max_code steps.

    The range is extended to contain 0, so that the zero point is a code.
    """

    def fit(self, blocks: torch.Tensor, layout: BlockLayout) -> BlockParams:
        d = self._scales(blocks, layout).half()
        reciprocals, _ = ggml_reciprocal(d.float())
        low = blocks.amin(1, keepdim=True).clamp_(max=0)
        zero_points = torch.round(-low * reciprocals).clamp_(0, layout.max_code)
        codes = torch.round(blocks * reciprocals).add_(zero_points).clamp_(0, layout.max_code)
        return BlockParams.with_zero_points(
            codes.byte().t(), d.squeeze(1), zero_points.squeeze(1).byte()
        )

    def _scales(self, blocks: torch.Tensor, layout: BlockLayout) -> torch.Tensor:
        low = blocks.amin(1, keepdim=True).clamp_(max=0)
        high = blocks.amax(1, keepdim=True).clamp_(min=0)
        return (high - low) / layout.max_code

    def _bound(
        self,
        levels: torch.Tensor,
        scales: torch.Tensor,
        scale_bound: torch.Tensor,
        layout: BlockLayout,
    ) -> torch.Tensor:
        # Codes are computed with the scale after it is rounded to float16. If it is rounded down,
        # max_code steps are shorter than the range, and a weight at its end is clipped.
        return scales / 2 * SLACK + layout.max_code * scale_bound


def ggml_reciprocal(scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute 1 / scales as ggml does.

    For a block of zeros ggml takes 0 as the reciprocal. For a scale so small that 1 / scale
    overflows it takes infinity; the products are out of the range of int8, and x86 converts all of
    them to 0.

    Returns:
        The reciprocals, with 0 in place of infinity, and a bool mask of the scales, other than 0,
        whose reciprocal overflows.
    """
    reciprocals = 1.0 / scales
    overflows = reciprocals.isinf() & (scales != 0)
    return torch.where(reciprocals.isinf(), 0.0, reciprocals), overflows


def _extreme(blocks: torch.Tensor) -> torch.Tensor:
    """Return the weight of largest magnitude of each block with its sign, [n, 1].

    It is the first such weight if there are several, as ggml takes it, and +0 for a block of zeros.
    """
    high, low = blocks.amax(1, keepdim=True), blocks.amin(1, keepdim=True)
    extreme = torch.where(high > -low, high, low)
    tied = (high == -low).squeeze(1).nonzero().squeeze(1)
    if len(tied):  # argmax is five times slower, so it is used only to decide between x and -x
        tied_blocks = blocks[tied]
        extreme[tied] = tied_blocks.gather(1, tied_blocks.abs().argmax(1, keepdim=True))
    return torch.where(extreme == 0, 0.0, extreme)
