"""GGUF's Q3_K: 256 weights in 110 bytes, 16 sub-blocks of 16 with a signed scale of 6 bits.

weight = d * (scale - 32) * (code - 4). Layout of block_q3_K of llama.cpp (ggml-common.h): 32 bytes
of third bits, bit r of byte j belonging to weight j of run r of 32; 64 bytes of low two bits, four
runs a byte; 12 bytes of scales; float16 d.
"""

from __future__ import annotations

import torch

from cgconvert.codecs.block_codec import column_bytes
from cgconvert.codecs.parts import Parts, blocks_first
from cgconvert.codecs.search.scale import Symmetric, search_parts
from cgconvert.codecs.searched import SearchedCodec

__all__ = ["Q3_K"]

# Chosen as Q4_1's, from 2 to 6 with either sign.
STARTS = (-4.2, -3.2, -4.6, -3.8)
WEIGHTED_STARTS = (-4.4, -6.2, -3.2, 5.0, -3.8, -5.2, 5.8, 4.2)


class Q3_K(SearchedCodec):  # noqa: N801 - the type's name
    name = "Q3_K"
    block_size, sub_size = 256, 16
    block_bytes = 110
    top, zero = 7, 4
    how = Symmetric(4, 3, STARTS, WEIGHTED_STARTS, polish=0)

    def find(self, x: torch.Tensor, weight: torch.Tensor | None) -> Parts:
        return search_parts(x, weight, self.how, self.name, 6)

    def pack(self, parts: Parts) -> torch.Tensor:
        n = parts.codes.shape[-1]
        third = (parts.codes >> 2).reshape(8, 32, n)
        low = (parts.codes & 3).reshape(2, 4, 32, n)
        mask = third[0]
        for run in range(1, 8):
            mask = mask | third[run] << run
        low = low[:, 0] | low[:, 1] << 2 | low[:, 2] << 4 | low[:, 3] << 6
        packed = torch.cat([mask, low.reshape(64, n), _pack_scales(parts.scales)])
        return torch.cat([blocks_first(packed), self.d_bytes(parts)], 1)

    def unpack(self, coded: torch.Tensor) -> Parts:
        packed = coded[:, :108].t().contiguous()
        third = torch.stack([packed[:32] >> run & 1 for run in range(8)])
        low = packed[32:96].reshape(2, 32, -1)
        low = torch.stack([low >> shift & 3 for shift in (0, 2, 4, 6)], 1)
        codes = low.reshape(16, 16, -1) | third.reshape(16, 16, -1) << 2
        d = column_bytes(coded, 108, 110).view(torch.float16).squeeze(1)
        return Parts(codes, _unpack_scales(packed[96:]), d)


def _pack_scales(scales: torch.Tensor) -> torch.Tensor:
    """int8 [16, n] as [12, n]: low four bits of scales s and s + 8, then the high two of four."""
    scales = (scales + 32).view(torch.uint8)
    low, high = scales & 15, scales >> 4
    top = high[:4] | high[4:8] << 2 | high[8:12] << 4 | high[12:] << 6
    return torch.cat([low[:8] | low[8:] << 4, top])


def _unpack_scales(packed: torch.Tensor) -> torch.Tensor:
    low, top = packed[:8], packed[8:]
    low = torch.cat([low & 15, low >> 4])
    high = torch.cat([top >> shift & 3 for shift in (0, 2, 4, 6)])
    return (low | high << 4).view(torch.int8) - 32
