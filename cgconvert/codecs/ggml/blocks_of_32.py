"""ggml's types of blocks of 32 weights: Q8_0, Q4_1 and Q4_0.

Layouts are those of llama.cpp's ggml/src/ggml-common.h (block_q8_0, block_q4_1, block_q4_0).
"""

from __future__ import annotations

import torch

from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.block_layout import BlockParams, blocks_first, float16_columns
from cgconvert.codecs.search.rounding import AbsMaxRounding, ExtremeRounding
from cgconvert.codecs.search.scale import ScaleSearch
from cgconvert.codecs.search.scale_min import ScaleMinSearch

__all__ = ["Q4_0", "Q4_1", "Q8_0", "SIGNED_4_BITS"]

SIGNED_4_BITS = ScaleSearch(
    # Chosen as Q4_K's, from -11 to -6 and 6 to 10.
    extreme_codes=(-8.3, -10.1, -7.1, -9.2, -11.0, 6.0, 9.5, -7.7),
    weighted_extreme_codes=(-8.3, -10.1, -7.1, -9.2, -11.0, 6.0, 9.5, -7.7),
)
"""The search of blocks that have a scale alone, for codes of 4 bits around 8."""


class Q8_0(BlockCodec):  # noqa: N801 - the type's name
    """34 bytes: a float16 d and 32 int8 codes; weight = d * code.

    Equal byte for byte to quantize_row_q8_0_ref of llama.cpp (ggml/src/ggml-quants.c), with an
    importance too: a search has nothing to gain at 8 bits. BlockParams count the codes from -128.
    """

    name = "Q8_0"
    block_size = sub_block_size = 32
    block_bytes = 34
    max_code, zero_point = 255, 128
    rounding = AbsMaxRounding()

    def pack(self, params: BlockParams) -> torch.Tensor:
        return torch.cat([self.scale_bytes(params), blocks_first(params.codes) ^ 128], 1)

    def unpack(self, packed: torch.Tensor) -> BlockParams:
        (d,) = float16_columns(packed, 0, 2)
        return BlockParams.without_sub_blocks((packed[:, 2:] ^ 128).t(), d)


class Q4_1(BlockCodec):  # noqa: N801 - the type's name
    """20 bytes: float16 d and m, and 32 codes of 4 bits; weight = d * code + m.

    Byte j of the codes holds those of weights j (low) and j + 16 (high). BlockParams' dmin is -m.
    """

    name = "Q4_1"
    block_size = sub_block_size = 32
    block_bytes = 20
    max_code = 15
    # Of a grid from -0.6 to 1.8 by 0.3, taken one after the other: each lowers the final error most
    # beside those before it, on Gaussian and heavy-tailed weights and a trained model's.
    search = ScaleMinSearch(
        end_shifts=((0.0, 0.0), (0.3, -0.6), (-0.3, 0.3), (0.3, 0.0), (0.3, 0.6)),
        weighted_end_shifts=(
            (0.0, 0.0), (-0.3, 0.6), (0.9, 0.3), (0.3, -0.6), (1.8, 0.3), (0.3, 1.8), (-0.6, -0.6),
            (0.6, 1.2),
        ),
        refits=2,
    )  # fmt: skip

    def pack(self, params: BlockParams) -> torch.Tensor:
        packed = torch.cat([self.scale_bytes(params), _join_halves(params.codes)], 1)
        packed[:, 3] ^= 128  # the sign: m is -dmin
        return packed

    def unpack(self, packed: torch.Tensor) -> BlockParams:
        d, m = float16_columns(packed, 0, 4)
        return BlockParams.without_sub_blocks(_split_halves(packed[:, 4:]), d, -m)


class Q4_0(BlockCodec):  # noqa: N801 - the type's name
    """18 bytes: a float16 d and 32 codes of 4 bits; weight = d * (code - 8).

    Byte j of the codes holds those of weights j (low) and j + 16 (high). Without an importance
    equal byte for byte to quantize_row_q4_0_ref of llama.cpp (ggml/src/ggml-quants.c).
    """

    name = "Q4_0"
    block_size = sub_block_size = 32
    block_bytes = 18
    max_code, zero_point = 15, 8
    rounding = ExtremeRounding()
    search = SIGNED_4_BITS

    def pack(self, params: BlockParams) -> torch.Tensor:
        return torch.cat([self.scale_bytes(params), _join_halves(params.codes)], 1)

    def unpack(self, packed: torch.Tensor) -> BlockParams:
        (d,) = float16_columns(packed, 0, 2)
        return BlockParams.without_sub_blocks(_split_halves(packed[:, 2:]), d)


def _join_halves(codes: torch.Tensor) -> torch.Tensor:
    """Codes below 16, uint8 [1, 32, n], as bytes [n, 16]: the second half of a block is high."""
    # Eight codes at a time: none is above 15, so the shift moves nothing into the next byte.
    words = blocks_first(codes).view(torch.int64)
    return (words[:, :2] | words[:, 2:] << 4).view(torch.uint8)


def _split_halves(packed: torch.Tensor) -> torch.Tensor:
    """Bytes [n, 16] as codes [32, n], in memory block after block."""
    return torch.cat([packed & 15, packed >> 4], 1).t()
