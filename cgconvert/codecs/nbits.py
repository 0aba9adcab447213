"""MatMulNBits' blocks as a block type: what error feedback and calibration round into.

On its way a block is bytes in one piece: the float16 scale, the zero point where there is one, and
the codes. Rows of such bytes can be cut, put into another order and laid one below the other
like rows of numbers; `FromBlocks` makes of them the arrays that the operators read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cgconvert.codecs.block_codec import column_bytes
from cgconvert.codecs.encoding import Array
from cgconvert.codecs.ggml.q4_0 import STARTS
from cgconvert.codecs.matmul_nbits import Blocks, MatMulNBits, round_to_nearest
from cgconvert.codecs.parts import Parts, blocks_first
from cgconvert.codecs.search.scale import Symmetric, search_whole
from cgconvert.codecs.search.zero_point import search_shifted
from cgconvert.codecs.searched import SearchedCodec

__all__ = ["FromBlocks", "NBits"]


class NBits(SearchedCodec):
    """Blocks of a layout's bits, size and symmetry.

    4 bits are searched. 8 bits are rounded between a block's extremes: there a search has nothing
    to gain.
    """

    how = Symmetric(8, 7, STARTS, STARTS)

    def __init__(self, layout: MatMulNBits) -> None:
        self.layout, self.name = layout, layout.name
        self.block_size = self.sub_size = layout.block_size
        self.top = (1 << layout.bits) - 1
        self.zero = 1 << layout.bits - 1 if layout.symmetric else 0
        self.before = 2 if layout.symmetric else 3  # bytes before the codes
        self.block_bytes = self.before + layout.block_size * layout.bits // 8

    def stored_bytes(self, shape: Sequence[int]) -> int:
        """Less than on the way: two zero points of 4 bits share a byte."""
        return shape[0] * sum(array.row_bytes for array in self.layout.arrays(shape))

    def search(self, blocks: torch.Tensor, weight: torch.Tensor | None = None) -> Parts:
        if self.layout.bits == 4:
            return super().search(blocks, weight)
        found = round_to_nearest(blocks.float()[None], 8, self.layout.symmetric)
        codes, d = found.codes[0].t().contiguous(), found.scales[0]
        return self._parts(codes, d, found.zero_points[0])

    def find(self, x: torch.Tensor, weight: torch.Tensor | None) -> Parts:
        if self.layout.symmetric:
            return search_whole(x, weight, self.how, self.name)
        return search_shifted(x, weight, self.top, self.name)

    def pack(self, parts: Parts) -> torch.Tensor:
        codes = blocks_first(parts.codes)
        if self.layout.bits == 4:
            codes = codes[:, 0::2] | codes[:, 1::2] << 4
        head = [self.float16_bytes(parts.d[:, None])]
        if parts.minimums is not None:
            head.append(parts.minimums.t())
        return torch.cat([*head, codes], 1)

    def unpack(self, coded: torch.Tensor) -> Parts:
        d = column_bytes(coded, 0, 2).view(torch.float16).squeeze(1)
        codes = coded[:, self.before :].t()
        if self.layout.bits == 4:
            codes = torch.stack([codes & 15, codes >> 4], 1).flatten(0, 1)
        return self._parts(codes.contiguous(), d, coded[:, 2])

    def blocks(self, coded: torch.Tensor) -> Blocks:
        """Rows of blocks, uint8 [rows, bytes of a row], as the layout packs them."""
        parts = self.unpack(coded.reshape(-1, self.block_bytes))
        shape = (len(coded), -1)
        zeros = parts.minimums if parts.minimums is not None else torch.full_like(coded, self.zero)
        codes = blocks_first(parts.codes).reshape(*shape, self.block_size)
        scales = parts.d.reshape(shape)
        return Blocks(codes, scales, zeros.reshape(shape)[:, : scales.shape[1]])

    def _parts(self, codes: torch.Tensor, d: torch.Tensor, zeros: torch.Tensor) -> Parts:
        """A zero point is a minimum in steps: d * code - d * zero, exact in float32."""
        parts = Parts.whole(codes, d)
        if self.layout.symmetric:
            return parts
        return Parts(parts.codes, parts.scales, d, zeros.contiguous()[None], d)


class FromBlocks(MatMulNBits):
    """The operators' arrays out of rows of a block type's bytes: every number stays as it is."""

    def arrays(self, shape: Sequence[int]) -> tuple[Array, ...]:
        """For bytes [rows, bytes of a row]."""
        codec = NBits(self)
        return super().arrays((shape[0], shape[1] // codec.block_bytes * self.block_size))

    def encode(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.pack(NBits(self).blocks(rows))
