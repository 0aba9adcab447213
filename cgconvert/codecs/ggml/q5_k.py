"""GGUF's Q5_K: 256 weights in 176 bytes, as Q4_K with codes of 5 bits.

Layout of block_q5_K of llama.cpp (ggml-common.h): d, dmin and scales as Q4_K's; 32 bytes of fifth
bits, bit s of byte j belonging to weight j of sub-block s; 128 bytes of the low four.
"""

from __future__ import annotations

import torch

from cgconvert.codecs.block_codec import column_bytes
from cgconvert.codecs.ggml.q4_k import join_nibbles, pack_scales, split_nibbles, unpack_scales
from cgconvert.codecs.parts import Parts, blocks_first
from cgconvert.codecs.search.scale_min import Affine, search_parts
from cgconvert.codecs.searched import SearchedCodec

__all__ = ["Q5_K"]

# Chosen as Q4_K's.
STARTS = ((-0.7, -0.1), (0.0, -0.8), (-0.1, 0.3), (0.3, 0.0))
# Of a grid from -0.6 to 1.8 by 0.3, each the best beside those before it.
WEIGHTED_STARTS = (
    (0.0, 0.0), (0.3, -0.6), (0.3, 0.9), (1.2, 0.0), (-0.6, -0.6), (0.3, 1.8), (0.9, 0.9),
    (0.6, 0.0),
)  # fmt: skip


class Q5_K(SearchedCodec):  # noqa: N801 - the type's name
    name = "Q5_K"
    block_size, sub_size = 256, 32
    block_bytes = 176
    top = 31
    how = Affine(top, STARTS, WEIGHTED_STARTS)

    def find(self, x: torch.Tensor, weight: torch.Tensor | None) -> Parts:
        return search_parts(x, weight, self.how, self.name, 63)

    def pack(self, parts: Parts) -> torch.Tensor:
        high = parts.codes >> 4
        fifth = high[0]
        for sub in range(1, 8):
            fifth = fifth | high[sub] << sub
        packed = torch.cat([pack_scales(parts), fifth, join_nibbles(parts.codes & 15)])
        return torch.cat([self.d_bytes(parts), blocks_first(packed)], 1)

    def unpack(self, coded: torch.Tensor) -> Parts:
        d, dmin = column_bytes(coded, 0, 4).view(torch.float16).t().contiguous()
        packed = coded[:, 4:].t().contiguous()
        scales, minimums = unpack_scales(packed[:12])
        fifth = torch.stack([packed[12:44] >> sub & 1 for sub in range(8)])
        return Parts(split_nibbles(packed[44:]) | fifth << 4, scales, d, minimums, dmin)
