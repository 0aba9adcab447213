"""GGUF's Q4_0: 32 weights in 18 bytes, a float16 scale d and 32 codes of 4 bits.

weight = d * (code - 8); byte j holds the codes of weights j (low) and j + 16 (high). Equal byte for
byte to quantize_row_q4_0_ref of llama.cpp (ggml/src/ggml-quants.c): the weight of largest
magnitude becomes code 0, whatever its sign. Only with weights of importance is there a search.
"""

from __future__ import annotations

import torch

from cgconvert.codecs.block_codec import BlockCodec, column_bytes, reciprocal
from cgconvert.codecs.parts import Parts, blocks_first
from cgconvert.codecs.search.scale import Symmetric, search_whole
from cgconvert.codecs.searched import SearchedCodec

__all__ = ["Q4_0"]

NIBBLES = 0x0F0F0F0F0F0F0F0F
# Chosen as Q4_K's, from -11 to -6 and 6 to 10.
STARTS = (-8.3, -10.1, -7.1, -9.2, -11.0, 6.0, 9.5, -7.7)


class Q4_0(SearchedCodec):  # noqa: N801 - the type's name
    name = "Q4_0"
    block_size = sub_size = 32
    block_bytes = 18
    top, zero = 15, 8
    how = Symmetric(8, 7, STARTS, STARTS)

    def search(self, blocks: torch.Tensor, weight: torch.Tensor | None = None) -> Parts:
        if weight is None:
            return self.unpack(self.encode_blocks(blocks))
        return super().search(blocks, weight)

    def find(self, x: torch.Tensor, weight: torch.Tensor | None) -> Parts:
        return search_whole(x, weight, self.how, self.name)

    def pack(self, parts: Parts) -> torch.Tensor:
        codes = parts.codes[0]
        packed = blocks_first(codes[:16] | codes[16:] << 4)
        return torch.cat([self.d_bytes(parts), packed], 1)

    def unpack(self, coded: torch.Tensor) -> Parts:
        d = column_bytes(coded, 0, 2).view(torch.float16).squeeze(1)
        packed = coded[:, 2:].t().contiguous()
        return Parts.whole(torch.cat([packed & 15, packed >> 4]), d)

    def encode_all(self, blocks: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        if weight is None:
            return BlockCodec.encode_all(self, blocks, None)
        return super().encode_all(blocks, weight)

    def encode_blocks(
        self, blocks: torch.Tensor, weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        if weight is not None:
            return super().encode_blocks(blocks, weight)
        blocks = blocks.float()
        scales = _largest(blocks) / -8
        inverse, tiny = reciprocal(scales)
        codes = (blocks * inverse).add_(8.5).to(torch.int8).clamp_(max=15)  # truncates
        if tiny.any():
            codes.masked_fill_(tiny, 0)
        # Eight codes at a time: none is above 15, so the shift moves nothing into the next byte.
        words = codes.view(torch.int64)
        coded = blocks.new_empty((len(blocks), self.block_bytes), dtype=torch.uint8)
        coded[:, :2] = self.float16_bytes(scales)
        coded[:, 2:] = (words[:, :2] | words[:, 2:] << 4).view(torch.uint8)
        return coded

    def decode_blocks(self, blocks: torch.Tensor) -> torch.Tensor:
        scales = column_bytes(blocks, 0, 2).view(torch.float16).float()
        words = column_bytes(blocks, 2, 18).view(torch.int64)
        codes = torch.cat([words & NIBBLES, words >> 4 & NIBBLES], 1).view(torch.int8)
        return scales * (codes - 8)


def _largest(blocks: torch.Tensor) -> torch.Tensor:
    """The first value of largest magnitude in each block, with its sign; +0 for zeros, [n, 1]."""
    high, low = blocks.amax(1, keepdim=True), blocks.amin(1, keepdim=True)
    largest = torch.where(high > -low, high, low)
    tied = (high == -low).squeeze(1).nonzero().squeeze(1)
    if len(tied):  # argmax is five times slower, so only where +x and -x may both be there
        some = blocks[tied]
        largest[tied] = some.gather(1, some.abs().argmax(1, keepdim=True))
    return torch.where(largest == 0, 0.0, largest)
