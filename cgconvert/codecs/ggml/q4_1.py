"""GGUF's Q4_1: 32 weights in 20 bytes, float16 d and m and 32 codes of 4 bits.

weight = d * code + m; byte j holds the codes of weights j (low) and j + 16 (high), as block_q4_1 of
llama.cpp (ggml/src/ggml-common.h).
"""

from __future__ import annotations

import torch

from cgconvert.codecs.block_codec import column_bytes
from cgconvert.codecs.parts import Parts, blocks_first
from cgconvert.codecs.search.least_squares import Coder
from cgconvert.codecs.search.scale_min import Affine, search_grid
from cgconvert.codecs.searched import SearchedCodec

__all__ = ["Q4_1"]

# Of a grid from -0.6 to 1.8 by 0.3, taken one after the other: each lowers the final error most
# beside those before it, on Gaussian and heavy-tailed weights and a trained model's.
STARTS = ((0.0, 0.0), (0.3, -0.6), (-0.3, 0.3), (0.3, 0.0), (0.3, 0.6))
WEIGHTED_STARTS = (
    (0.0, 0.0), (-0.3, 0.6), (0.9, 0.3), (0.3, -0.6), (1.8, 0.3), (0.3, 1.8), (-0.6, -0.6),
    (0.6, 1.2),
)  # fmt: skip


class Q4_1(SearchedCodec):  # noqa: N801 - the type's name
    name = "Q4_1"
    block_size = sub_size = 32
    block_bytes = 20
    top = 15
    how = Affine(top, STARTS, WEIGHTED_STARTS, polish=2)

    def find(self, x: torch.Tensor, weight: torch.Tensor | None) -> Parts:
        low = x.amin(-2)
        # From the least weight on, as a block far from 0 has all its digits in the minimum.
        lifted = Coder(x - low.unsqueeze(-2), weight, 0, self.top)
        grid = search_grid(lifted, self.how, self.name, signed=True)
        d, dmin = grid.steps.half(), (grid.offsets - low).half()
        codes = Coder(x, None, 0, self.top).codes(d.float(), dmin.float())
        return Parts.whole(codes[0], d[0], dmin[0])

    def pack(self, parts: Parts) -> torch.Tensor:
        codes = parts.codes[0]
        packed = blocks_first(codes[:16] | codes[16:] << 4)
        coded = torch.cat([self.d_bytes(parts), packed], 1)
        coded[:, 3] ^= 128  # m is -dmin
        return coded

    def unpack(self, coded: torch.Tensor) -> Parts:
        d, m = column_bytes(coded, 0, 4).view(torch.float16).t().contiguous()
        packed = coded[:, 4:].t().contiguous()
        return Parts.whole(torch.cat([packed & 15, packed >> 4]), d, -m)
