"""ONNX Runtime's blocks: against bytes written out by hand, its own operators and its quantizer."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import NodeProto, TensorProto, helper
from onnxruntime.capi import _pybind_state as shipped

from cgconvert.codecs.block_layout import BlockParams
from cgconvert.codecs.ggml.blocks_of_32 import Q4_0, Q8_0
from cgconvert.codecs.matmul_nbits import MatMulNBits
from cgconvert.errors import InputError, UsageError

ROWS, WIDTH = 24, 96  # three blocks of 32: the zero points of a row end in half a byte

LAYOUTS = [
    MatMulNBits(bits, block_size, symmetric)
    for bits in (4, 8)
    for block_size in (16, 32)
    for symmetric in (False, True)
]


@pytest.fixture
def weights() -> torch.Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0)) * 0.02


def test_an_asymmetric_block_by_hand() -> None:
    """From -2 to 5.5 in steps of 1/2: code 4 is zero."""
    row = [-2.0, 5.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, -0.5, -1.0, -1.5]
    codes, scales, zeros = MatMulNBits(4, 16).encode(torch.tensor([row, [0.0] * 16]))
    assert codes[0, 0].tolist() == [0xF0, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0x3E, 0x12]
    assert scales.dtype == torch.float16
    assert scales.tolist() == [[0.5], [0.0]]
    assert zeros.tolist() == [[0x04], [0x00]]
    assert codes[1, 0].tolist() == [0] * 8


def test_a_symmetric_block_by_hand() -> None:
    """The value of largest magnitude is code 0 whatever its sign, and code 8 is zero."""
    row = [8.0, 0.0, -7.0, 7.0, 1.0, -1.0, 2.0, -2.0] + [0.0] * 8
    codes, scales = MatMulNBits(4, 16, symmetric=True).encode(torch.tensor([row]))
    assert scales.tolist() == [[-1.0]]
    assert codes[0, 0].tolist() == [0x80, 0x1F, 0x97, 0xA6, 0x88, 0x88, 0x88, 0x88]


def test_eight_bits_by_hand() -> None:
    row = [-127.0, 127.0, 1.0, 0.0] + [0.5] * 12
    codes, scales = MatMulNBits(8, 16, symmetric=True).encode(torch.tensor([row]))
    assert scales.tolist() == [[1.0]]
    assert codes[0, 0].tolist() == [1, 255, 129, 128] + [129] * 12  # halves away from zero


def test_zero_points_of_a_row_share_bytes() -> None:
    """Three blocks whose zero points are 15, 0 and 8: two bytes, the first point low."""
    row = torch.zeros(3, 16)
    row[0, 0], row[1, 0] = -15.0, 15.0
    row[2, :2] = torch.tensor([-8.0, 7.0])
    zeros = MatMulNBits(4, 16).encode(row.reshape(1, 48))[2]
    assert zeros.tolist() == [[0x0F, 0x08]]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_onnxruntime_multiplies_by_the_decoded_weights(
    layout: MatMulNBits, weights: torch.Tensor
) -> None:
    arrays = layout.encode(weights)
    decoded = layout.decode(arrays, weights.shape)
    node = helper.make_node(
        "MatMulNBits", ["a", "codes", "scales", "zeros"][: 1 + len(arrays)], ["y"],
        domain="com.microsoft", N=ROWS, K=WIDTH, bits=layout.bits, block_size=layout.block_size,
    )  # fmt: skip
    product = run(node, np.eye(WIDTH, dtype=np.float32), arrays)
    assert np.abs(product - decoded.numpy().T).max() <= 1e-7


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_onnxruntime_gathers_the_decoded_rows(layout: MatMulNBits, weights: torch.Tensor) -> None:
    table = MatMulNBits(layout.bits, layout.block_size, layout.symmetric, table=True)
    arrays = table.encode(weights)
    names = ["codes", "a", "scales", "zeros"][: 1 + len(arrays)]
    node = helper.make_node(
        "GatherBlockQuantized", names, ["y"], domain="com.microsoft", bits=layout.bits,
        block_size=layout.block_size, gather_axis=0, quantize_axis=1,
    )  # fmt: skip
    rows = np.array([5, 0, ROWS - 1])
    decoded = table.decode(arrays, weights.shape)[torch.from_numpy(rows)]
    assert np.array_equal(run(node, rows, arrays), decoded.numpy())


def run(node: NodeProto, inputs: np.ndarray, arrays: tuple[torch.Tensor, ...]) -> np.ndarray:
    """The output of one node; scales in float32, as in a float32 graph."""
    values = [array.float() if array.is_floating_point() else array for array in arrays]
    constants = {
        name: value.numpy()
        for name, value in zip(("codes", "scales", "zeros"), values, strict=False)
    }
    kinds = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int64": TensorProto.INT64}
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("a", kinds[str(inputs.dtype)], inputs.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            helper.make_tensor(name, kinds[str(v.dtype)], v.shape, v.tobytes(), raw=True)
            for name, v in constants.items()
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    product: np.ndarray = session.run(None, {"a": inputs})[0]
    return product


@pytest.mark.parametrize(("bits", "symmetric"), [(4, False), (4, True), (8, False)])
def test_onnxruntimes_own_quantizer_packs_the_same_bytes(bits: int, symmetric: bool) -> None:
    """On weights that lie on a grid, where no two ways of rounding differ.

    Not for symmetric 8 bits: the shipped one divides the extreme by -128, we by 127, as Q8_0 does.
    """
    grid = MatMulNBits(bits, 32, symmetric)
    top = (1 << bits) - 1
    codes = torch.randint(0, top + 1, (ROWS, 2, 32), generator=torch.Generator().manual_seed(1))
    codes[..., 0], codes[..., 1] = 0, top
    zeros = torch.full((ROWS, 2), (top + 1) // 2)
    weights = (codes - zeros[..., None]) * 2.0**-6
    ours = grid.encode(weights.reshape(ROWS, 64))
    theirs = [np.zeros(tuple(a.shape), np.float32 if n == 1 else np.uint8)
              for n, a in enumerate(ours)]  # fmt: skip
    points = theirs[2] if len(theirs) > 2 else np.zeros((0,), np.uint8)
    quantize = getattr(shipped, f"quantize_matmul_{bits}bits")
    source = np.ascontiguousarray(weights.reshape(ROWS, 64).T.numpy())
    quantize(theirs[0], source, theirs[1], points, 32, ROWS, 64, symmetric)
    for array, expected in zip(ours, theirs, strict=True):
        assert np.array_equal(array.float().numpy().ravel(), expected.astype(np.float32).ravel())


@pytest.mark.parametrize(("bits", "codec"), [(4, Q4_0()), (8, Q8_0())])
def test_symmetric_blocks_are_ggufs(bits: int, codec: Q4_0 | Q8_0, weights: torch.Tensor) -> None:
    weights[0, :32] = 0
    weights[1, 3], weights[1, 7] = 0.5, -0.5  # which of two extremes comes first matters
    weights[2, 7], weights[2, 3] = 0.5, -0.5
    weights[3, :32] = torch.arange(32) / 64 - 0.25
    weights[4, :32] *= 1e-6
    layout = MatMulNBits(bits, 32, symmetric=True)
    decoded = layout.decode(layout.encode(weights), weights.shape)
    assert torch.equal(decoded, codec.decode(codec.encode(weights), weights.shape))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_rounding_is_to_nearest(layout: MatMulNBits, weights: torch.Tensor) -> None:
    blocks = weights.reshape(-1, layout.block_size)
    params = layout.fit(blocks)
    decoded = layout.decode(layout.pack_arrays(params, ROWS), weights.shape)
    error = (decoded - weights).reshape(blocks.shape).abs()
    # Half a step, and what float16 takes from the scale at the far end of the range. The shorter
    # side of a symmetric 4-bit block ends one step before its extreme.
    half = 1.0 if layout.symmetric and layout.bits == 4 else 0.5
    step = params.d.float().abs()[:, None]
    assert (error <= step * (half + 2**-11 * (1 << layout.bits) + 1e-3)).all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_unpacking_inverts_packing(layout: MatMulNBits) -> None:
    generator = torch.Generator().manual_seed(2)
    rows, blocks = 5, 15
    shape = (layout.block_size, blocks)
    codes = torch.randint(0, 1 << layout.bits, shape, generator=generator, dtype=torch.uint8)
    scales = torch.randn(blocks, generator=generator).half()
    zero_points = torch.randint(0, 1 << layout.bits, (blocks,), generator=generator).byte()
    if layout.symmetric:
        params = BlockParams.without_sub_blocks(codes, scales)
    else:
        params = BlockParams.with_zero_points(codes, scales, zero_points)
    arrays = layout.pack_arrays(params, rows)
    for array, described in zip(arrays, layout.arrays((rows, 3 * layout.block_size)), strict=True):
        assert tuple(array.shape) == described.shape
        assert array.is_contiguous()
        assert array[0].numel() * array.itemsize == described.row_bytes
    unpacked = layout.unpack_arrays(arrays)
    assert torch.equal(unpacked.codes[0], codes)
    assert torch.equal(unpacked.d, scales)
    if not layout.symmetric:
        assert unpacked.minimums is not None
        assert torch.equal(unpacked.minimums[0], zero_points)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_chunks_make_no_difference(layout: MatMulNBits, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(3)).half()
    whole = layout.encode(weights)
    monkeypatch.setattr("cgconvert.codecs.matmul_nbits.TILE", 5 * WIDTH)
    parts = [layout.encode(part) for part in weights.split(7)]
    for array, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(array, torch.cat(pieces))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_weights_beyond_every_scale_are_refused(value: float) -> None:
    weights = torch.zeros(1, 32)
    weights[0, 5] = value
    for layout in LAYOUTS:
        with pytest.raises(InputError, match="cannot hold these weights"):
            layout.encode(weights)


def test_unsupported_shapes_and_sizes_are_refused() -> None:
    for shape in ((4, 80), (4,), (2, 2, 32)):
        with pytest.raises(InputError, match="blocks of 32"):
            MatMulNBits(4, 32).arrays(shape)
    for bits, block_size in ((3, 32), (4, 24), (8, 8)):
        with pytest.raises(UsageError):
            MatMulNBits(bits, block_size)
