"""ggml's types of blocks of 32 weights: Q8_0, Q4_1 and Q4_0.

Layouts are those of llama.cpp's ggml/src/ggml-common.h (block_q8_0, block_q4_1, block_q4_0).
"""

from __future__ import annotations

from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.block_layout import BlockParams, blocks_first, float16_columns
from cgconvert.codecs.search.rounding import AbsMaxRounding, ExtremeRounding
from cgconvert.codecs.search.scale import ScaleSearch
from cgconvert.codecs.search.scale_min import ScaleMinSearch
from cgconvert.lazy import torch

__all__ = ["Q4_0", "Q4_1", "Q8_0", "SIGNED_4_BITS"]

SIGNED_4_BITS = ScaleSearch(
    # Tuned as Q4_K's settings were, from -11 to -6 and 6 to 10.
    extreme_codes=(-8.3, -10.1, -7.1, -9.2, -11.0, 6.0, 9.5, -7.7),
    weighted_extreme_codes=(-8.3, -10.1, -7.1, -9.2, -11.0, 6.0, 9.5, -7.7),
)
"""The search for blocks of 4-bit codes with a scale and the fixed zero point 8."""


class Q8_0(BlockCodec):  # noqa: N801 - the type's name
    """34 bytes: a float16 d and 32 int8 codes; weight = d * code.

    The bytes equal those of quantize_row_q8_0_ref of llama.cpp (ggml/src/ggml-quants.c). There is
    no search, even with an importance, because at 8 bits it lowers the error hardly at all. In
    BlockParams the int8 codes are stored as uint8, increased by 128.
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

    Byte j of the codes holds the codes of weights j (low nibble) and j + 16 (high nibble). In
    BlockParams dmin is -m.
    """

    name = "Q4_1"
    block_size = sub_block_size = 32
    block_bytes = 20
    max_code = 15
    # Chosen greedily from multiples of 0.3 between -0.6 and 1.8: each entry is the one that, added
    # to those before it, lowers the final error most, measured on Gaussian and heavy-tailed weights
    # and on those of a trained model.
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

    Byte j of the codes holds the codes of weights j (low nibble) and j + 16 (high nibble). Without
    an importance the bytes equal those of quantize_row_q4_0_ref of llama.cpp
    (ggml/src/ggml-quants.c).
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
    """Pack 4-bit codes uint8 [1, 32, n] into bytes [n, 16].

    The first half of a block goes into the low nibbles, the second half into the high ones.
    """
    # An int64 holds eight codes. None is above 15, so the shift moves no bit into the next byte.
    words = blocks_first(codes).view(torch.int64)
    return (words[:, :2] | words[:, 2:] << 4).view(torch.uint8)


def _split_halves(packed: torch.Tensor) -> torch.Tensor:
    """Unpack bytes [n, 16] into codes uint8 [32, n], a transposed view of [n, 32]."""
    return torch.cat([packed & 15, packed >> 4], 1).t()
