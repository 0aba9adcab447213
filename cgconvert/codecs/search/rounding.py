"""Round-to-nearest rules: scales and codes follow from a block's weights, without a search.

Each rule comes with the bound of its error, which verification holds stored blocks to: half a
step, and more where the format clips or rounds its scale to float16 (docs/verify.md).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch

from cgconvert.codecs.block_layout import BlockLayout, BlockParams, blocks_first

__all__ = ["AbsMaxRounding", "ExtremeRounding", "MinMaxRounding", "Rounding", "reciprocal"]

HALF_ULP, TINY = 2.0**-11, 2.0**-25
"""Rounding to float16: relative for normal numbers, absolute for subnormal ones."""

SLACK = 1 + 2.0**-10
"""For the float32 arithmetic of an encoder: some 2^-17 of a step at 8 bits."""

BELOW_HALF = 0.49999997
"""trunc(x + copysign(this, x)) is C's roundf, ties away from zero: with a plain 0.5 the largest
float below 0.5 would become 1."""


class Rounding(ABC):
    """A rule for the scale of a block and the code of each weight."""

    @abstractmethod
    def fit(self, blocks: torch.Tensor, layout: BlockLayout) -> BlockParams:
        """The parameters of blocks float32 [n, block_size]; d may come out infinite or NaN.

        Codes lie in memory as the blocks do, block after block.
        """

    def error_ratio(
        self, params: BlockParams, blocks: torch.Tensor, layout: BlockLayout
    ) -> torch.Tensor:
        """How far stored parameters are from the source's blocks, in multiples of the bound.

        Args:
            params: the stored parameters of n blocks.
            blocks: the source's weights, float32 [n, block_size].
            layout: the layout of the stored blocks.

        Returns:
            float32 [n]: the larger of the scale's deviation from what the rule demands and of the
            worst weight's error, each over its bound; infinite where one is NaN.
        """
        scales = params.d.float()[:, None]
        zero_points: torch.Tensor | int = layout.zero_point
        if params.minimums is not None:
            zero_points = params.minimums[0].float()[:, None]
        steps = blocks_first(params.codes).float() - zero_points
        demanded = self._scales(blocks, layout).abs()
        rounding = (demanded * HALF_ULP).clamp(min=TINY) * SLACK
        scale_ratio = (scales.abs() - demanded).abs() / rounding
        error = self._unclipped(blocks - steps * scales, steps, scales)
        bound = self._bound(steps, scales.abs(), rounding, layout)
        weight_ratio = (error.abs_() / bound).amax(1)
        return torch.maximum(weight_ratio, scale_ratio.squeeze(1)).nan_to_num_(nan=math.inf)

    @abstractmethod
    def _scales(self, blocks: torch.Tensor, layout: BlockLayout) -> torch.Tensor:
        """The scale that the rule gives each block, before float16: float32 [n, 1]."""

    def _unclipped(
        self, error: torch.Tensor, steps: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        """`error` without what the rule's clipping allows."""
        return error

    def _bound(
        self,
        steps: torch.Tensor,
        scales: torch.Tensor,
        rounding: torch.Tensor,
        layout: BlockLayout,
    ) -> torch.Tensor:
        """The error allowed each weight, for stored steps and magnitudes of scales.

        Codes come from the scale before it is rounded, so a code of n steps is n roundings off.
        """
        return steps.abs() * rounding + (scales + rounding) / 2 * SLACK


class ExtremeRounding(Rounding):
    """4 bits: the weight of largest magnitude becomes code 0, whatever its sign; scale may be < 0.

    Equal to quantize_row_q4_0_ref of llama.cpp (ggml/src/ggml-quants.c).
    """

    def fit(self, blocks: torch.Tensor, layout: BlockLayout) -> BlockParams:
        scales = self._scales(blocks, layout)
        inverse, tiny = reciprocal(scales)
        codes = (blocks * inverse).add_(8.5).to(torch.int8).clamp_(max=15)  # truncates
        if tiny.any():
            codes.masked_fill_(tiny, 0)
        d = scales.half().squeeze(1)
        return BlockParams.without_sub_blocks(codes.view(torch.uint8).t(), d)

    def _scales(self, blocks: torch.Tensor, layout: BlockLayout) -> torch.Tensor:
        return _extreme(blocks) / -8

    def _unclipped(
        self, error: torch.Tensor, steps: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        # 8 steps have no code: a weight beyond the last one is clipped to 7.
        beyond = error.signbit() == scales.signbit()  # a scale may be -0
        return torch.where((steps == 7) & beyond, error / 2, error)


class AbsMaxRounding(Rounding):
    """8 bits: the largest magnitude becomes 127 steps, so codes are 1 to 255.

    Equal to quantize_row_q8_0_ref of llama.cpp (ggml/src/ggml-quants.c).
    """

    def fit(self, blocks: torch.Tensor, layout: BlockLayout) -> BlockParams:
        scales = self._scales(blocks, layout)
        codes = blocks * reciprocal(scales)[0]
        codes += torch.copysign(torch.full_like(codes[:1, :1], BELOW_HALF), codes)
        offset_codes = codes.to(torch.int8).view(torch.uint8).bitwise_xor_(128)  # truncates
        return BlockParams.without_sub_blocks(offset_codes.t(), scales.half().squeeze(1))

    def _scales(self, blocks: torch.Tensor, layout: BlockLayout) -> torch.Tensor:
        return blocks.abs().amax(1, keepdim=True) / 127


class MinMaxRounding(Rounding):
    """The range from the least to the largest weight, widened to hold 0, in max_code steps."""

    def fit(self, blocks: torch.Tensor, layout: BlockLayout) -> BlockParams:
        d = self._scales(blocks, layout).half()
        inverse, _ = reciprocal(d.float())
        low = blocks.amin(1, keepdim=True).clamp_(max=0)
        zero_points = torch.round(-low * inverse).clamp_(0, layout.max_code)
        codes = torch.round(blocks * inverse).add_(zero_points).clamp_(0, layout.max_code)
        return BlockParams.with_zero_points(
            codes.byte().t(), d.squeeze(1), zero_points.squeeze(1).byte()
        )

    def _scales(self, blocks: torch.Tensor, layout: BlockLayout) -> torch.Tensor:
        low = blocks.amin(1, keepdim=True).clamp_(max=0)
        high = blocks.amax(1, keepdim=True).clamp_(min=0)
        return (high - low) / layout.max_code

    def _bound(
        self,
        steps: torch.Tensor,
        scales: torch.Tensor,
        rounding: torch.Tensor,
        layout: BlockLayout,
    ) -> torch.Tensor:
        # Codes come from the rounded scale, so only the range may be some roundings too short.
        return scales / 2 * SLACK + layout.max_code * rounding


def reciprocal(scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """1 / scales, 0 where it is not finite, and where the scale is so small that 1 / it overflows.

    ggml gives a block of zeros the inverse 0; one of denormals the inverse infinity, whose
    products have no int8: x86 makes all of them 0.
    """
    inverse = 1.0 / scales
    tiny = inverse.isinf() & (scales != 0)
    return torch.where(inverse.isinf(), 0.0, inverse), tiny


def _extreme(blocks: torch.Tensor) -> torch.Tensor:
    """The first weight of largest magnitude of each block, with its sign; +0 for zeros, [n, 1]."""
    high, low = blocks.amax(1, keepdim=True), blocks.amin(1, keepdim=True)
    extreme = torch.where(high > -low, high, low)
    tied = (high == -low).squeeze(1).nonzero().squeeze(1)
    if len(tied):  # argmax is five times slower, so only where +x and -x may both be there
        tied_blocks = blocks[tied]
        extreme[tied] = tied_blocks.gather(1, tied_blocks.abs().argmax(1, keepdim=True))
    return torch.where(extreme == 0, 0.0, extreme)
