"""What Q8_0 and Q4_0 write, against blocks written out by hand, llama.cpp's own C, and gguf-py."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest
import torch

from cgconvert.codecs import block_codec as blocks
from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.ggml.blocks_of_32 import Q4_0, Q8_0
from cgconvert.errors import InputError
from tests.support import ggml

CODECS = [Q8_0(), Q4_0()]
LARGEST = 65504 * 8.0
"""The largest weight whose scale float16 holds in both types."""

both = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)


def weights() -> dict[str, np.ndarray]:
    """float32 [rows, columns] by what is peculiar about them."""
    random = np.random.default_rng(0)
    normal = random.standard_normal((64, 1024), dtype=np.float32)
    exponents = random.integers(-149, 18, normal.shape)
    steps = random.integers(-254, 255, (256, 96)) / np.float32(2)
    steps[:, ::32] = 127  # the scale is 1, so that every half is a tie
    pairs = normal.copy()
    pairs[:, 1::2] = -pairs[:, ::2]  # the largest magnitude comes with both signs
    signed = np.zeros((4, 64), np.float32)
    signed[1:] = -0.0
    signed[2, 5], signed[3, 40] = 1e-30, -1e-42
    return {
        "normal": normal,
        "float16": normal.astype(np.float16).astype(np.float32),
        "all magnitudes": np.ldexp(normal, exponents).clip(-LARGEST, LARGEST),
        "denormal": np.ldexp(normal, -140 + random.integers(-8, 14, normal.shape)),
        "inverse overflows": normal * np.float32(1e-38),
        "largest": np.full((2, 64), LARGEST, np.float32) * np.array([[1], [-1]], np.float32),
        "ties": steps.astype(np.float32),
        "ties of four bits": (random.integers(-16, 17, (256, 64)) / 2).astype(np.float32),
        "both signs": pairs,
        "constant": np.full((3, 32), 0.1, np.float32),
        "zeros of both signs": signed,
        "one block": normal[:1, :32],
    }


@both
@pytest.mark.parametrize("kind", weights())
def test_same_bytes_as_ggml(codec: BlockCodec, kind: str) -> None:
    rows = np.ascontiguousarray(weights()[kind])
    (coded,) = codec.encode(torch.from_numpy(rows))
    assert coded.dtype == torch.uint8
    np.testing.assert_array_equal(coded.numpy(), ggml.quantize(codec.name, rows))


@both
def test_same_bytes_as_gguf_py(codec: BlockCodec) -> None:
    rows = weights()["normal"]
    expected = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[codec.name])
    np.testing.assert_array_equal(codec.encode(torch.from_numpy(rows))[0].numpy(), expected)


def test_q8_0_block_by_hand() -> None:
    """127 is the largest, so the scale is 1 and every weight its own code."""
    row = [127.0, -127.0, 0.5, -0.5, 1.5, 2.4999, -63.5, 0.0] + [float(n) for n in range(24)]
    codes = [127, -127, 1, -1, 2, 2, -64, 0, *range(24)]
    (coded,) = Q8_0().encode(torch.tensor([row]))
    assert bytes(coded[0].tolist()) == struct.pack("<e32b", 1.0, *codes)
    assert Q8_0().decode_rows(coded, (32,)).tolist() == [float(code) for code in codes]


def test_q4_0_block_by_hand() -> None:
    """The largest magnitude is -8, so the scale is 1 and code = weight + 8, at most 15."""
    low = [-8.0, 7.0, 8.0, 0.0, -0.5, 0.5] + [1.0] * 10
    high = [0.0, -1.0, -7.4, 6.5] + [-3.0] * 12
    expected = [0, 15, 15, 8, 8, 9] + [9] * 10, [8, 7, 1, 15] + [5] * 12
    (coded,) = Q4_0().encode(torch.tensor([low + high]))
    packed = [a | b << 4 for a, b in zip(*expected, strict=True)]
    assert bytes(coded[0].tolist()) == struct.pack("<e16B", 1.0, *packed)
    assert Q4_0().decode_rows(coded, (32,)).tolist() == [
        code - 8.0 for half in expected for code in half
    ]


@both
def test_error_stays_within_half_a_step(codec: BlockCodec) -> None:
    rows = torch.from_numpy(weights()["normal"])
    (coded,) = codec.encode(rows)
    scales = coded.view(-1, codec.block_bytes)[:, :2].contiguous().view(torch.float16).float()
    error = (codec.decode_rows(coded, rows.shape) - rows).view(-1, 32).abs()
    # Q4_0 has no code for the largest magnitude with the other sign: up to a whole step.
    steps = {"Q8_0": 0.57, "Q4_0": 1.01}[codec.name]
    assert (error <= steps * scales.abs()).all()


@both
def test_any_chunking_gives_the_same_bytes(
    codec: BlockCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = torch.from_numpy(weights()["all magnitudes"])
    whole = codec.encode(rows)[0]
    parts = torch.cat([codec.encode(rows[n : n + 3])[0] for n in range(0, len(rows), 3)])
    assert torch.equal(parts, whole)
    monkeypatch.setattr(blocks, "TILE", 160)
    assert torch.equal(codec.encode(rows)[0], whole)
    assert torch.equal(
        codec.decode_rows(whole, rows.shape), codec.decode_rows(whole.view(-1), rows.shape)
    )


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_type_is_taken(codec: BlockCodec, dtype: torch.dtype) -> None:
    rows = torch.from_numpy(weights()["normal"]).to(dtype)
    assert torch.equal(codec.encode(rows)[0], codec.encode(rows.float())[0])


@both
@pytest.mark.parametrize("shape", [(4, 33), (4, 31), (32,)])
def test_rows_must_divide_into_blocks(codec: BlockCodec, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="multiple of 32"):
        codec.arrays(shape)
    with pytest.raises(InputError, match="multiple of 32"):
        codec.encode(torch.zeros(shape))


@both
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -3e38])
def test_weights_beyond_every_scale_are_refused(codec: BlockCodec, value: float) -> None:
    rows = torch.zeros(2, 64)
    rows[1, 40] = value
    with pytest.raises(InputError, match=f"{codec.name} cannot hold"):
        codec.encode(rows)


@both
def test_array_is_described(codec: BlockCodec) -> None:
    (array,) = codec.arrays((6, 256))
    assert (array.suffix, array.shape, array.dtype) == ("", (6, 256), codec.name)
    assert array.row_bytes == 8 * codec.block_bytes == codec.encode(torch.zeros(6, 256))[0].shape[1]
