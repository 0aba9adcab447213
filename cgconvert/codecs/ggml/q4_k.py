"""GGUF's Q4_K: 256 weights in 144 bytes, 8 sub-blocks of 32 with a scale and a minimum of 6 bits.

weight = d * scale * code - dmin * minimum. Layout of block_q4_K of llama.cpp (ggml-common.h):
float16 d and dmin, 12 bytes of scales and minimums, 128 bytes of codes of 4 bits; of each pair of
sub-blocks the first is in the low nibbles.
"""

from __future__ import annotations

import torch

from cgconvert.codecs.block_codec import column_bytes
from cgconvert.codecs.parts import Parts, blocks_first
from cgconvert.codecs.search.scale_min import Affine, search_parts
from cgconvert.codecs.searched import SearchedCodec

__all__ = ["Q4_K", "STARTS", "WEIGHTED_STARTS", "join_nibbles", "pack_scales", "split_nibbles",
           "unpack_scales"]  # fmt: skip

# Moved by steps down to 0.1, in turn, for as long as that lowered the final error: of Gaussian,
# heavy-tailed, uniform and one-sided weights and a trained model's.
STARTS = ((-0.3, 0.4), (0.0, -0.9), (0.0, 0.2), (0.4, 0.0))
WEIGHTED_STARTS = ((-0.8, -1.0), (0.3, 0.0), (-0.1, 0.5), (0.1, -1.0), (1.4, 0.3), (0.1, 1.6))


class Q4_K(SearchedCodec):  # noqa: N801 - the type's name
    name = "Q4_K"
    block_size, sub_size = 256, 32
    block_bytes = 144
    top = 15
    how = Affine(top, STARTS, WEIGHTED_STARTS)

    def find(self, x: torch.Tensor, weight: torch.Tensor | None) -> Parts:
        return search_parts(x, weight, self.how, self.name, 63)

    def pack(self, parts: Parts) -> torch.Tensor:
        packed = torch.cat([pack_scales(parts), join_nibbles(parts.codes)])
        return torch.cat([self.d_bytes(parts), blocks_first(packed)], 1)

    def unpack(self, coded: torch.Tensor) -> Parts:
        d, dmin = column_bytes(coded, 0, 4).view(torch.float16).t().contiguous()
        packed = coded[:, 4:].t().contiguous()
        scales, minimums = unpack_scales(packed[:12])
        return Parts(split_nibbles(packed[12:]), scales, d, minimums, dmin)


def join_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Codes below 16, uint8 [8, 32, n], as [128, n]: of each two sub-blocks the second is high."""
    return (codes[0::2] | codes[1::2] << 4).reshape(128, -1)


def split_nibbles(packed: torch.Tensor) -> torch.Tensor:
    packed = packed.reshape(4, 32, -1)
    return torch.stack([packed & 15, packed >> 4], 1).reshape(8, 32, -1)


def pack_scales(parts: Parts) -> torch.Tensor:
    """Scales and minimums of 6 bits in 12 bytes, uint8 [12, n] (get_scale_min_k4, ggml-quants.c).

    The first four of each are whole in the low bits of bytes 0 to 7, the last four in two pieces:
    their low four bits in bytes 8 to 11, their high two on top of the first.
    """
    assert parts.minimums is not None
    scales, minimums = parts.scales.view(torch.uint8), parts.minimums
    return torch.cat(
        [
            scales[:4] | scales[4:] >> 4 << 6,
            minimums[:4] | minimums[4:] >> 4 << 6,
            scales[4:] & 15 | minimums[4:] << 4,
        ]
    )


def unpack_scales(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 scales and uint8 minimums, [8, n]."""
    first, second, last = packed[:4], packed[4:8], packed[8:]
    scales = torch.cat([first & 63, last & 15 | first >> 6 << 4])
    return scales.view(torch.int8), torch.cat([second & 63, last >> 4 | second >> 6 << 4])
