"""GGUF's Q6_K: 256 weights in 210 bytes, 16 sub-blocks of 16 with an int8 scale.

weight = d * scale * (code - 32). Layout of block_q6_K of llama.cpp (ggml-common.h): 128 bytes of
low four bits, 64 of high two, 16 scales, float16 d. Each half of 128 weights is four runs of 32:
the low bits of runs 0 and 2 share bytes, then those of 1 and 3; the high bits of all four.
"""

from __future__ import annotations

import torch

from cgconvert.codecs.block_codec import column_bytes
from cgconvert.codecs.parts import Parts, blocks_first
from cgconvert.codecs.search.scale import Symmetric, search_parts
from cgconvert.codecs.searched import SearchedCodec

__all__ = ["Q6_K"]

# Chosen as Q4_K's, by steps down to 0.2 and, weighted, 0.4.
STARTS = (-32.0, -31.0, -30.0)
WEIGHTED_STARTS = (-32.4, -30.8, -29.2, -27.2)


class Q6_K(SearchedCodec):  # noqa: N801 - the type's name
    name = "Q6_K"
    block_size, sub_size = 256, 16
    block_bytes = 210
    top, zero = 63, 32
    how = Symmetric(32, 31, STARTS, WEIGHTED_STARTS, polish=0)

    def find(self, x: torch.Tensor, weight: torch.Tensor | None) -> Parts:
        return search_parts(x, weight, self.how, self.name, 8)

    def pack(self, parts: Parts) -> torch.Tensor:
        runs = parts.codes.reshape(2, 4, 32, -1)
        low, high = runs & 15, runs >> 4
        low = low[:, :2] | low[:, 2:] << 4
        high = high[:, 0] | high[:, 1] << 2 | high[:, 2] << 4 | high[:, 3] << 6
        n = runs.shape[-1]
        scales = parts.scales.view(torch.uint8)
        packed = torch.cat([low.reshape(128, n), high.reshape(64, n), scales])
        return torch.cat([blocks_first(packed), self.d_bytes(parts)], 1)

    def unpack(self, coded: torch.Tensor) -> Parts:
        packed = coded[:, :208].t().contiguous()
        low, high = packed[:128].reshape(2, 2, 32, -1), packed[128:192].reshape(2, 32, -1)
        low = torch.cat([low & 15, low >> 4], 1)
        high = torch.stack([high >> shift & 3 for shift in (0, 2, 4, 6)], 1)
        codes = (low | high << 4).reshape(16, 16, -1)
        d = column_bytes(coded, 208, 210).view(torch.float16).squeeze(1)
        return Parts(codes, packed[192:].view(torch.int8), d)
