"""ggml's K-quants Q3_K, Q4_K, Q5_K and Q6_K: blocks of 256 weights, with scales for sub-blocks.

Layouts are those of llama.cpp's ggml/src/ggml-common.h (block_q3_K to block_q6_K).
"""

from __future__ import annotations

from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.block_layout import BlockParams, blocks_first, float16_columns
from cgconvert.codecs.search.scale import ScaleSearch
from cgconvert.codecs.search.scale_min import ScaleMinSearch
from cgconvert.lazy import torch

__all__ = ["Q3_K", "Q4_K", "Q5_K", "Q6_K"]


class Q3_K(BlockCodec):  # noqa: N801 - the type's name
    """110 bytes: 16 sub-blocks of 16 weights with a signed scale of 6 bits, and codes of 3 bits.

    weight = d * (scale - 32) * (code - 4). If the weights are seen as 8 runs of 32, the bytes are

    - 32 bytes of the codes' highest bits: bit r of byte j belongs to weight j of run r;
    - 64 bytes of their low two bits: a byte holds those of four runs;
    - 12 bytes of scales;
    - d, a float16.
    """

    name = "Q3_K"
    block_size, sub_block_size = 256, 16
    block_bytes = 110
    max_code, zero_point, scale_bits = 7, 4, 6
    # Chosen greedily as Q4_1's settings were, from 2 to 6 with either sign.
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
        body = packed[:, :108].t().contiguous()  # all but d
        third = _split_bits(body[:32]).reshape(16, 16, -1)
        low = _split_pairs(body[32:96].reshape(2, 32, -1)).reshape(16, 16, -1)
        (d,) = float16_columns(packed, 108, 110)
        return BlockParams(low | third << 2, self._unpack_scales(body[96:]), d)

    def _pack_scales(self, scales: torch.Tensor) -> torch.Tensor:
        """Pack scales int8 [16, n] into bytes [12, n].

        Bytes 0 to 7 hold the low four bits of scales s and s + 8, bytes 8 to 11 the high two bits
        of four scales.
        """
        unsigned = (scales + 32).view(torch.uint8)
        low = unsigned & 15
        return torch.cat(
            [low[:8] | low[8:] << 4, _join_pairs((unsigned >> 4).reshape(1, 4, 4, -1))[0]]
        )

    def _unpack_scales(self, packed: torch.Tensor) -> torch.Tensor:
        """Unpack bytes [12, n] into scales int8 [16, n]."""
        low = torch.cat([packed[:8] & 15, packed[:8] >> 4])
        high = _split_pairs(packed[None, 8:]).reshape(16, -1)
        return (low | high << 4).view(torch.int8) - 32


class _ScaleMinLayout(BlockCodec):
    """The layout of Q4_K, and with one bit more of Q5_K.

    A block has 8 sub-blocks of 32 weights with a scale and a minimum of 6 bits each;
    weight = d * scale * code - dmin * minimum. It begins with d and dmin, two float16.
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
        """Pack 4-bit codes uint8 [8, 32, n] into bytes [128, n].

        Two neighbouring sub-blocks share bytes: the first has the low nibbles.
        """
        return (codes[0::2] | codes[1::2] << 4).reshape(128, -1)

    def _unpack_codes(self, packed: torch.Tensor) -> torch.Tensor:
        """Unpack the bytes behind the scales into codes uint8 [8, 32, n]."""
        pairs = packed.reshape(4, 32, -1)
        return torch.stack([pairs & 15, pairs >> 4], 1).reshape(8, 32, -1)

    def _pack_scales(self, params: BlockParams) -> torch.Tensor:
        """Pack scales and minimums into bytes [12, n], as get_scale_min_k4 of ggml-quants.c reads.

        Bytes 0 to 7 hold the first four scales and the first four minimums in their low six bits.
        The other four of each are split: their low four bits are in bytes 8 to 11, their high two
        bits are the high two bits of bytes 0 to 7.
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
        """Unpack bytes [12, n] into scales int8 [8, n] and minimums uint8 [8, n]."""
        first, second, last = packed[:4], packed[4:8], packed[8:]
        scales = torch.cat([first & 63, last & 15 | first >> 6 << 4])
        return scales.view(torch.int8), torch.cat([second & 63, last >> 4 | second >> 6 << 4])


class Q4_K(_ScaleMinLayout):  # noqa: N801 - the type's name
    """144 bytes: d, dmin, 12 bytes of scales and minimums, 128 bytes of codes of 4 bits."""

    name = "Q4_K"
    block_bytes = 144
    max_code = 15
    # Tuned by moving one number at a time, by steps down to 0.1, as long as that lowered the final
    # error on Gaussian, heavy-tailed, uniform and one-sided weights and on a trained model's.
    search = ScaleMinSearch(
        end_shifts=((-0.3, 0.4), (0.0, -0.9), (0.0, 0.2), (0.4, 0.0)),
        weighted_end_shifts=(
            (-0.8, -1.0), (0.3, 0.0), (-0.1, 0.5), (0.1, -1.0), (1.4, 0.3), (0.1, 1.6),
        ),
    )  # fmt: skip


class Q5_K(_ScaleMinLayout):  # noqa: N801 - the type's name
    """176 bytes: d, dmin, scales and minimums as in Q4_K, then the codes of 5 bits.

    32 bytes hold the codes' highest bits: bit s of byte j belongs to weight j of sub-block s. Then
    come the low four bits, packed as Q4_K's codes.
    """

    name = "Q5_K"
    block_bytes = 176
    max_code = 31
    # Tuned as Q4_K's settings were; the weighted ones chosen greedily as Q4_1's.
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
    """210 bytes: 16 sub-blocks of 16 weights with an int8 scale, and codes of 6 bits.

    weight = d * scale * (code - 32). If each half of the weights is seen as four runs of 32, the
    bytes are

    - 128 bytes of the codes' low four bits: in each half, run 0 shares bytes with 2, and 1 with 3;
    - 64 bytes of their high two bits: in each half, all four runs share bytes;
    - 16 bytes of scales;
    - d, a float16.
    """

    name = "Q6_K"
    block_size, sub_block_size = 256, 16
    block_bytes = 210
    max_code, zero_point, scale_bits = 63, 32, 8
    # Tuned as Q4_K's settings were, by steps down to 0.2, and to 0.4 for the weighted ones.
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
        body = packed[:, :208].t().contiguous()  # all but d
        low = body[:128].reshape(2, 2, 32, -1)
        low = torch.cat([low & 15, low >> 4], 1)
        high = _split_pairs(body[128:192].reshape(2, 32, -1))
        (d,) = float16_columns(packed, 208, 210)
        codes = (low | high << 4).reshape(16, 16, -1)
        return BlockParams(codes, body[192:].view(torch.int8), d)


def _join_bits(bits: torch.Tensor) -> torch.Tensor:
    """Pack bits uint8 [8, 32, n] into bytes [32, n]: bits[r] become bit r of the bytes."""
    joined = bits[0]
    for row in range(1, 8):
        joined = joined | bits[row] << row
    return joined


def _split_bits(joined: torch.Tensor) -> torch.Tensor:
    """Unpack bytes [32, n] into bits uint8 [8, 32, n]."""
    return torch.stack([joined >> row & 1 for row in range(8)])


def _join_pairs(pairs: torch.Tensor) -> torch.Tensor:
    """Pack 2-bit numbers uint8 [m, 4, k, n] into bytes [m, k, n].

    pairs[:, r] become bits 2r and 2r + 1 of the bytes.
    """
    return pairs[:, 0] | pairs[:, 1] << 2 | pairs[:, 2] << 4 | pairs[:, 3] << 6


def _split_pairs(joined: torch.Tensor) -> torch.Tensor:
    """Unpack bytes [m, k, n] into 2-bit numbers uint8 [m, 4, k, n]."""
    return torch.stack([joined >> shift & 3 for shift in (0, 2, 4, 6)], 1)
