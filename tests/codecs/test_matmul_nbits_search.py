"""MatMulNBits' blocks as a block type: its search, its bytes, and GPTQ in it."""

from __future__ import annotations

import pytest
import torch

from cgconvert.calibrate.gptq import Hessian, quantize_matrix
from cgconvert.codecs.matmul_nbits import MatMulNBits
from cgconvert.codecs.quantized_tensor import PackedRowsEncoding
from cgconvert.errors import InputError

LAYOUTS = [
    MatMulNBits(bits, block_size, symmetric)
    for bits in (4, 8)
    for block_size in (16, 32, 256)
    for symmetric in (False, True)
]
SEARCHED = [layout for layout in LAYOUTS if layout.bits == 4]

each = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)


@pytest.fixture
def weights() -> torch.Tensor:
    """Rows of a model, and some that are not like one."""
    rows = torch.randn(40, 768, generator=torch.Generator().manual_seed(0)) * 0.02
    rows[0] = 0
    rows[1] = rows[1].abs() + 0.5
    rows[2] = -rows[2].abs() - 0.5
    rows[3, 100] = 2.0
    rows[4] *= 1e-6
    rows[5] = 0.25
    return rows


def importance() -> torch.Tensor:
    return torch.randn(768, generator=torch.Generator().manual_seed(1)).exp() ** 2


def error(values: torch.Tensor, weights: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return ((values - weights).double().square() * weight).sum(1)


@each
def test_operators_get_the_numbers_the_blocks_stand_for(
    layout: MatMulNBits, weights: torch.Tensor
) -> None:
    codec = layout.with_search()
    coded = codec.encode_rows(weights)
    assert coded.shape == (40, codec.row_bytes(weights.shape))
    repacked = PackedRowsEncoding(codec, tuple(weights.shape))
    arrays = repacked.encode(coded)
    assert torch.equal(
        layout.decode(arrays, weights.shape), codec.decode_rows(coded, weights.shape)
    )
    described = repacked.arrays(coded.shape)
    assert described == layout.arrays(weights.shape)
    assert [tuple(array.shape) for array in arrays] == [array.shape for array in described]
    assert codec.stored_bytes(weights.shape) == sum(a.numel() * a.itemsize for a in arrays)


@each
def test_any_bytes_pack_to_the_same_again(layout: MatMulNBits) -> None:
    codec = layout.with_search()
    shape = 50, codec.block_bytes
    coded = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(2))
    coded = coded.to(torch.uint8)
    coded[:, 1] = 0x24  # a finite scale
    if not layout.symmetric:
        coded[:, 2] &= codec.max_code
    assert torch.equal(codec.pack(codec.unpack(coded)), coded)


@pytest.mark.parametrize("layout", SEARCHED, ids=lambda layout: layout.name)
def test_the_search_loses_less_than_rounding(layout: MatMulNBits, weights: torch.Tensor) -> None:
    codec, ones = layout.with_search(), torch.ones(768)
    rounded = layout.decode(layout.encode(weights), weights.shape)
    for weight, most in ((None, 0.95), (importance(), 0.9)):
        decoded = codec.decode(codec.encode(weights, weight), weights.shape)
        ours = error(decoded, weights, ones if weight is None else weight)
        theirs = error(rounded, weights, ones if weight is None else weight)
        assert ours[6:].sum() < most * theirs[6:].sum()
        power = error(torch.zeros(()), weights, ones if weight is None else weight)
        assert (ours <= theirs * 1.02 + 1e-6 * power + 1e-12).all()
        assert not decoded[0].any()


def test_a_search_by_hand() -> None:
    """On a grid, with a zero point of 4: found exactly, where a weight that counts for nothing
    lies beyond its end too."""
    row = (torch.arange(16) - 4.0) * 0.5
    for last, weight in ((5.5, None), (8.0, torch.ones(16))):
        row[15] = last
        if weight is not None:
            weight[15] = 1e-9
        params = MatMulNBits(4, 16, searched=True).fit(row[None], weight)
        assert params.minimums is not None
        assert (params.d.item(), params.minimums.item()) == (0.5, 4)
        assert params.codes.flatten().tolist() == list(range(16))


@each
def test_rows_do_not_depend_on_one_another(layout: MatMulNBits, weights: torch.Tensor) -> None:
    codec = layout.with_search()
    whole = codec.encode_rows(weights, importance())
    parts = [codec.encode_rows(part, importance()) for part in weights.split(7)]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("layout", SEARCHED[:4], ids=lambda layout: layout.name)
def test_feedback_loses_less_than_the_search(layout: MatMulNBits) -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.eye(256) + torch.randn(256, 256, generator=generator) / 8
    inputs = torch.randn(2048, 256, generator=generator) @ mixing
    weight = torch.randn(32, 256, generator=generator) * 0.02
    moments, codec = (inputs.t() @ inputs).double(), layout.with_search()

    def lost(coded: torch.Tensor) -> float:
        left = (weight - codec.decode_rows(coded, weight.shape)).double()
        return float(((left @ moments) * left).sum())

    coded = quantize_matrix(weight, Hessian.from_moments(moments), codec)
    assert lost(coded) < 0.75 * lost(codec.encode_rows(weight))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_weights_beyond_every_scale_are_refused(value: float) -> None:
    rows = torch.zeros(1, 256)
    rows[0, 5] = value
    for layout in LAYOUTS:
        with pytest.raises(InputError, match="cannot hold these weights"):
            layout.with_search().encode(rows)
