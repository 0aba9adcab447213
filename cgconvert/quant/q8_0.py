"""GGUF's Q8_0: 32 weights in 34 bytes, a float16 scale d and 32 int8 codes; weight = d * code.

Equal byte for byte to quantize_row_q8_0_ref of llama.cpp (ggml/src/ggml-quants.c).
"""

from __future__ import annotations

import torch

from cgconvert.quant.blocks import BlockType, column_bytes, reciprocal

__all__ = ["Q8_0"]

# trunc(x + copysign(this, x)) is C's roundf, ties away from zero: with a plain 0.5 the largest
# float below 0.5 would become 1.
BELOW_HALF = torch.tensor(0.49999997)


class Q8_0(BlockType):  # noqa: N801 - the type's name
    name = "Q8_0"
    block_size = 32
    block_bytes = 34

    def encode_blocks(self, blocks: torch.Tensor) -> torch.Tensor:
        scales = blocks.abs().amax(1, keepdim=True) / 127
        inverse, _ = reciprocal(scales)
        codes = blocks * inverse
        codes += torch.copysign(BELOW_HALF, codes)
        coded = blocks.new_empty((len(blocks), self.block_bytes), dtype=torch.uint8)
        coded[:, :2] = self.float16_bytes(scales)
        coded[:, 2:].view(torch.int8).copy_(codes)  # the conversion truncates
        return coded

    def decode_blocks(self, blocks: torch.Tensor) -> torch.Tensor:
        scales = column_bytes(blocks, 0, 2).view(torch.float16).float()
        return scales * blocks[:, 2:].view(torch.int8)
