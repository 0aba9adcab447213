"""ggml's K-quants: Q3_K, Q4_K, Q5_K and Q6_K, blocks of 256 weights with scales of sub-blocks.

Layouts are those of llama.cpp's ggml/src/ggml-common.h (block_q3_K to block_q6_K).
"""

from __future__ import annotations

import torch

from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.block_layout import BlockParams, blocks_first, float16_columns
from cgconvert.codecs.search.scale import ScaleSearch
from cgconvert.codecs.search.scale_min import ScaleMinSearch

__all__ = ["Q3_K", "Q4_K", "Q5_K", "Q6_K"]


class Q3_K(BlockCodec):  # noqa: N801 - the type's name
    """110 bytes: 16 sub-blocks of 16 with a signed scale of 6 bits.

    weight = d * (scale - 32) * (code - 4). 32 bytes of third bits, bit r of byte j belonging to
    weight j of run r of 32; 64 bytes of low two bits, four runs a byte; 12 bytes of scales;
    float16 d.
    """

    name = "Q3_K"
    block_size, sub_block_size = 256, 16
    block_bytes = 110
    max_code, zero_point, scale_bits = 7, 4, 6
    # Chosen as Q4_1's, from 2 to 6 with either sign.
    search = ScaleSearch(
        extreme_codes=(-4.2, -3.2, -4.6, -3.8),
        weighted_extreme_codes=(-4.4, -6.2, -3.2, 5.0, -3.8, -5.2, 5.8, 4.2),
        refits=0,
    )

    def pack(self, params: BlockParams) -> torch.Tensor:
        n = params.codes.shape[-1]
        third = _join_bits((params.codes >> 2).reshape(8, 32, n))
        low = _join_pairs((params.codes & 3).reshape(2, 4, 32, n)).reshape(64, n)
        packed = torch.cat([third, low, self._pack_scales(params.scales)])
        return torch.cat([blocks_first(packed), self.scale_bytes(params)], 1)

    def unpack(self, packed: torch.Tensor) -> BlockParams:
        body = packed[:, :108].t().contiguous()
        third = _split_bits(body[:32]).reshape(16, 16, -1)
        low = _split_pairs(body[32:96].reshape(2, 32, -1)).reshape(16, 16, -1)
        (d,) = float16_columns(packed, 108, 110)
        return BlockParams(low | third << 2, self._unpack_scales(body[96:]), d)

    def _pack_scales(self, scales: torch.Tensor) -> torch.Tensor:
        """int8 [16, n] as [12, n]: low four bits of scales s and s + 8, then high two of four."""
        unsigned = (scales + 32).view(torch.uint8)
        low = unsigned & 15
        return torch.cat(
            [low[:8] | low[8:] << 4, _join_pairs((unsigned >> 4).reshape(1, 4, 4, -1))[0]]
        )

    def _unpack_scales(self, packed: torch.Tensor) -> torch.Tensor:
        low = torch.cat([packed[:8] & 15, packed[:8] >> 4])
        high = _split_pairs(packed[None, 8:]).reshape(16, -1)
        return (low | high << 4).view(torch.int8) - 32


class _ScaleMinLayout(BlockCodec):
    """8 sub-blocks of 32 with a scale and a minimum of 6 bits; float16 d and dmin come first.

    weight = d * scale * code - dmin * minimum.
    """

    block_size, sub_block_size = 256, 32
    scale_bits = 6

    def pack(self, params: BlockParams) -> torch.Tensor:
        packed = torch.cat([self._pack_scales(params), self._pack_codes(params.codes)])
        return torch.cat([self.scale_bytes(params), blocks_first(packed)], 1)

    def unpack(self, packed: torch.Tensor) -> BlockParams:
        d, dmin = float16_columns(packed, 0, 4)
        body = packed[:, 4:].t().contiguous()
        scales, minimums = self._unpack_scales(body[:12])
        return BlockParams(self._unpack_codes(body[12:]), scales, d, minimums, dmin)

    def _pack_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes below 16, uint8 [8, 32, n], as [128, n]: of two sub-blocks the second is high."""
        return (codes[0::2] | codes[1::2] << 4).reshape(128, -1)

    def _unpack_codes(self, packed: torch.Tensor) -> torch.Tensor:
        pairs = packed.reshape(4, 32, -1)
        return torch.stack([pairs & 15, pairs >> 4], 1).reshape(8, 32, -1)

    def _pack_scales(self, params: BlockParams) -> torch.Tensor:
        """Scales and minimums in 12 bytes, uint8 [12, n] (get_scale_min_k4, ggml-quants.c).

        The first four of each are whole in the low bits of bytes 0 to 7, the last four in two
        pieces: their low four bits in bytes 8 to 11, their high two on top of the first.
        """
        assert params.minimums is not None
        scales, minimums = params.scales.view(torch.uint8), params.minimums
        return torch.cat(
            [
                scales[:4] | scales[4:] >> 4 << 6,
                minimums[:4] | minimums[4:] >> 4 << 6,
                scales[4:] & 15 | minimums[4:] << 4,
            ]
        )

    def _unpack_scales(self, packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """int8 scales and uint8 minimums, [8, n]."""
        first, second, last = packed[:4], packed[4:8], packed[8:]
        scales = torch.cat([first & 63, last & 15 | first >> 6 << 4])
        return scales.view(torch.int8), torch.cat([second & 63, last >> 4 | second >> 6 << 4])


class Q4_K(_ScaleMinLayout):  # noqa: N801 - the type's name
    """144 bytes: d, dmin, 12 bytes of scales and minimums, 128 bytes of codes of 4 bits."""

    name = "Q4_K"
    block_bytes = 144
    max_code = 15
    # Moved by steps down to 0.1, in turn, for as long as that lowered the final error: of Gaussian,
    # heavy-tailed, uniform and one-sided weights and a trained model's.
    search = ScaleMinSearch(
        end_shifts=((-0.3, 0.4), (0.0, -0.9), (0.0, 0.2), (0.4, 0.0)),
        weighted_end_shifts=(
            (-0.8, -1.0), (0.3, 0.0), (-0.1, 0.5), (0.1, -1.0), (1.4, 0.3), (0.1, 1.6),
        ),
    )  # fmt: skip


class Q5_K(_ScaleMinLayout):  # noqa: N801 - the type's name
    """176 bytes: d, dmin, scales and minimums as Q4_K's; fifth bits; low four bits as Q4_K's codes.

    Bit s of byte j of the 32 bytes of fifth bits belongs to weight j of sub-block s.
    """

    name = "Q5_K"
    block_bytes = 176
    max_code = 31
    # Chosen as Q4_K's; weighted ones of a grid from -0.6 to 1.8 by 0.3, each the best beside those
    # before it.
    search = ScaleMinSearch(
        end_shifts=((-0.7, -0.1), (0.0, -0.8), (-0.1, 0.3), (0.3, 0.0)),
        weighted_end_shifts=(
            (0.0, 0.0), (0.3, -0.6), (0.3, 0.9), (1.2, 0.0), (-0.6, -0.6), (0.3, 1.8), (0.9, 0.9),
            (0.6, 0.0),
        ),
    )  # fmt: skip

    def _pack_codes(self, codes: torch.Tensor) -> torch.Tensor:
        return torch.cat([_join_bits(codes >> 4), super()._pack_codes(codes & 15)])

    def _unpack_codes(self, packed: torch.Tensor) -> torch.Tensor:
        return super()._unpack_codes(packed[32:]) | _split_bits(packed[:32]) << 4


class Q6_K(BlockCodec):  # noqa: N801 - the type's name
    """210 bytes: 16 sub-blocks of 16 with an int8 scale; weight = d * scale * (code - 32).

    128 bytes of low four bits, 64 of high two, 16 scales, float16 d. Each half of 128 weights is
    four runs of 32: the low bits of runs 0 and 2 share bytes, then those of 1 and 3; the high bits
    of all four share bytes.
    """

    name = "Q6_K"
    block_size, sub_block_size = 256, 16
    block_bytes = 210
    max_code, zero_point, scale_bits = 63, 32, 8
    # Chosen as Q4_K's, by steps down to 0.2 and, weighted, 0.4.
    search = ScaleSearch(
        extreme_codes=(-32.0, -31.0, -30.0),
        weighted_extreme_codes=(-32.4, -30.8, -29.2, -27.2),
        refits=0,
    )

    def pack(self, params: BlockParams) -> torch.Tensor:
        runs = params.codes.reshape(2, 4, 32, -1)
        n = runs.shape[-1]
        low = runs & 15
        low = (low[:, :2] | low[:, 2:] << 4).reshape(128, n)
        high = _join_pairs(runs >> 4).reshape(64, n)
        packed = torch.cat([low, high, params.scales.view(torch.uint8)])
        return torch.cat([blocks_first(packed), self.scale_bytes(params)], 1)

    def unpack(self, packed: torch.Tensor) -> BlockParams:
        body = packed[:, :208].t().contiguous()
        low = body[:128].reshape(2, 2, 32, -1)
        low = torch.cat([low & 15, low >> 4], 1)
        high = _split_pairs(body[128:192].reshape(2, 32, -1))
        (d,) = float16_columns(packed, 208, 210)
        codes = (low | high << 4).reshape(16, 16, -1)
        return BlockParams(codes, body[192:].view(torch.int8), d)


def _join_bits(bits: torch.Tensor) -> torch.Tensor:
    """Numbers below 2, uint8 [8, 32, n], as [32, n]: row r is bit r of each byte."""
    joined = bits[0]
    for row in range(1, 8):
        joined = joined | bits[row] << row
    return joined


def _split_bits(joined: torch.Tensor) -> torch.Tensor:
    return torch.stack([joined >> row & 1 for row in range(8)])


def _join_pairs(pairs: torch.Tensor) -> torch.Tensor:
    """Numbers below 4, uint8 [m, 4, k, n], as [m, k, n]: row r is bits 2r and 2r + 1 of a byte."""
    return pairs[:, 0] | pairs[:, 1] << 2 | pairs[:, 2] << 4 | pairs[:, 3] << 6


def _split_pairs(joined: torch.Tensor) -> torch.Tensor:
    return torch.stack([joined >> shift & 3 for shift in (0, 2, 4, 6)], 1)
