"""GGUF's Q8_0: 32 weights in 34 bytes, a float16 scale d and 32 int8 codes; weight = d * code.

Equal byte for byte to quantize_row_q8_0_ref of llama.cpp (ggml/src/ggml-quants.c), with weights of
importance too: a search has nothing to gain at 8 bits.
"""

from __future__ import annotations

import torch

from cgconvert.codecs.block_codec import BlockCodec, column_bytes, reciprocal
from cgconvert.codecs.parts import Parts, blocks_first

__all__ = ["Q8_0"]

# trunc(x + copysign(this, x)) is C's roundf, ties away from zero: with a plain 0.5 the largest
# float below 0.5 would become 1.
BELOW_HALF = 0.49999997


class Q8_0(BlockCodec):  # noqa: N801 - the type's name
    name = "Q8_0"
    block_size = sub_size = 32
    block_bytes = 34
    top, zero = 255, 128

    def search(self, blocks: torch.Tensor, weight: torch.Tensor | None = None) -> Parts:
        return self.unpack(self.encode_blocks(blocks))

    def pack(self, parts: Parts) -> torch.Tensor:
        return torch.cat([self.d_bytes(parts), blocks_first(parts.codes ^ 128)], 1)

    def unpack(self, coded: torch.Tensor) -> Parts:
        d = column_bytes(coded, 0, 2).view(torch.float16).squeeze(1)
        return Parts.whole(coded[:, 2:].t().contiguous() ^ 128, d)

    def encode_blocks(
        self, blocks: torch.Tensor, weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        blocks = blocks.float()
        scales = blocks.abs().amax(1, keepdim=True) / 127
        inverse, _ = reciprocal(scales)
        codes = blocks * inverse
        codes += torch.copysign(torch.full_like(codes[:1, :1], BELOW_HALF), codes)
        coded = blocks.new_empty((len(blocks), self.block_bytes), dtype=torch.uint8)
        coded[:, :2] = self.float16_bytes(scales)
        coded[:, 2:].view(torch.int8).copy_(codes)  # the conversion truncates
        return coded

    def decode_blocks(self, blocks: torch.Tensor) -> torch.Tensor:
        scales = column_bytes(blocks, 0, 2).view(torch.float16).float()
        return scales * blocks[:, 2:].view(torch.int8)
