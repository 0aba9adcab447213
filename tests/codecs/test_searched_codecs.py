"""Every block type's bytes against gguf-py, and the searched ones' error against llama.cpp's C."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import gguf
import numpy as np
import pytest
import torch

from cgconvert import embedded
from cgconvert.codecs import block_codec
from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.ggml.blocks_of_32 import Q4_0, Q4_1, Q8_0
from cgconvert.codecs.ggml.k_quants import Q3_K, Q4_K, Q5_K, Q6_K
from cgconvert.codecs.search.scale_min import ScaleMinSearch
from cgconvert.errors import InputError
from cgconvert.formats.read import read
from tests.support import ggml

SEARCHED = [Q4_1(), Q3_K(), Q4_K(), Q5_K(), Q6_K()]
ALL = [Q8_0(), Q4_0(), *SEARCHED]
COLUMNS = 512

every = pytest.mark.parametrize("codec", ALL, ids=lambda codec: codec.name)
each_searched = pytest.mark.parametrize("codec", SEARCHED, ids=lambda codec: codec.name)
weighted = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])


@cache
def tensors() -> dict[str, np.ndarray]:
    """float32 [rows, COLUMNS] by what is peculiar about them."""
    random = np.random.default_rng(0)
    shape = (128, COLUMNS)
    normal = random.standard_normal(shape)
    runs = np.repeat(random.random((128, COLUMNS // 32)), 32, 1)
    rows_by_kind = {
        "normal": normal,
        "heavy tails": random.standard_t(4, shape),
        "very heavy tails": random.standard_t(2, shape),
        "outliers": normal * np.where(random.random(shape) < 0.002, 30, 1),
        "positive": np.abs(normal),
        "negative": -np.abs(normal) - 0.5,
        "uniform": random.random(shape) - 0.5,
        "sparse": normal * (random.random(shape) < 0.1),
        "on a grid": random.integers(-8, 8, shape) * 0.01,
        "sub-blocks of zeros": normal * (runs < 0.5),
        "sub-blocks of all sizes": normal * np.exp(3 * runs),
        "zeros": np.zeros(shape),
        "denormal": normal * 1e-40,
        "scales subnormal in float16": normal * 1e-5,
        "scales the smallest in float16": normal * 1e-6,
        "large": normal * 1e4,
        "float16": normal.astype(np.float16),
    }
    decoder = read(str(embedded.path())).decoder
    layer = decoder.layers[2]
    for name in ("q", "v", "o", "fc_in", "fc_out"):
        rows_by_kind[f"trained {name}"] = getattr(layer, name).read(slice(0, 256)).float().numpy()
    rows_by_kind["trained embedding"] = decoder.wte.read(slice(0, 512)).float().numpy()
    rows_by_kind["trained head"] = decoder.head.read(slice(0, 512)).float().numpy()
    return {name: np.ascontiguousarray(rows, np.float32) for name, rows in rows_by_kind.items()}


def importance(columns: int) -> np.ndarray:
    """Random weights for columns, as uneven as the mean squares of a layer's inputs."""
    random = np.random.default_rng(1)
    drawn = random.standard_normal(columns) ** 2 * random.lognormal(0, 1, columns)
    return drawn.astype(np.float32)


def error(rows: np.ndarray, decoded: np.ndarray, weights: np.ndarray | None) -> float:
    squares = (rows.astype(np.float64) - decoded) ** 2
    return float((squares if weights is None else squares * weights).sum())


def encoded(codec: BlockCodec, rows: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    share = None if weights is None else torch.from_numpy(weights)
    return codec.encode(torch.from_numpy(rows), share)[0].numpy()


def random_bytes(codec: BlockCodec) -> np.ndarray:
    """Every pattern of bits a block can have, but for scales that are not finite."""
    random = np.random.default_rng(2)
    coded = random.integers(0, 256, (3000, codec.block_bytes), dtype=np.uint8)
    d = codec.unpack(torch.from_numpy(coded))
    finite = d.d.isfinite() if d.dmin is None else d.d.isfinite() & d.dmin.isfinite()
    kept: np.ndarray = coded[finite.numpy()]
    assert len(kept) > 2500
    return kept


@every
def test_decodes_as_gguf_py(codec: BlockCodec) -> None:
    coded = random_bytes(codec)
    decoded = codec.decode_rows(torch.from_numpy(coded), (len(coded), codec.block_size))
    assert decoded.dtype == torch.float32
    np.testing.assert_array_equal(decoded.numpy(), ggml.dequantize(codec.name, coded))


@every
def test_parts_are_the_bytes(codec: BlockCodec) -> None:
    coded = torch.from_numpy(random_bytes(codec))
    assert torch.equal(codec.pack(codec.unpack(coded)), coded)


@every
@weighted
def test_search_is_what_encode_writes(codec: BlockCodec, weighted: bool) -> None:
    rows = torch.from_numpy(tensors()["normal"])
    cut = rows.reshape(-1, codec.block_size)
    weights = torch.from_numpy(importance(codec.block_size)) if weighted else None
    params = codec.fit(cut, weights)
    assert int(params.codes.max()) <= codec.max_code
    assert params.codes.shape == (
        codec.block_size // codec.sub_block_size,
        codec.sub_block_size,
        len(cut),
    )
    repeated = None if weights is None else weights.repeat(COLUMNS // codec.block_size)
    (coded,) = codec.encode(rows, repeated)
    assert torch.equal(codec.pack(params).reshape(len(rows), -1), coded)
    assert torch.equal(
        codec.values(params).reshape(rows.shape), codec.decode_rows(coded, rows.shape)
    )


@each_searched
@weighted
@pytest.mark.parametrize("kind", tensors())
def test_error_is_not_above_ggmls(codec: BlockCodec, weighted: bool, kind: str) -> None:
    """The error is the weighted one if both search with an importance for each column."""
    rows = tensors()[kind]
    weights = importance(rows.shape[1]) if weighted else None
    ours = ggml.dequantize(codec.name, encoded(codec, rows, weights))
    theirs = ggml.dequantize(codec.name, ggml.quantize(codec.name, rows, weights))
    assert error(rows, ours, weights) <= error(rows, theirs, weights)


@each_searched
@weighted
@pytest.mark.parametrize("value", [0.1, -3.0])
def test_a_constant_is_nearly_exact(codec: BlockCodec, weighted: bool, value: float) -> None:
    """Choices compare sums in float32, to which 1e-6 of the squares of a block is nothing."""
    rows = np.full((4, COLUMNS), value, np.float32)
    weights = importance(COLUMNS) if weighted else None
    ours = ggml.dequantize(codec.name, encoded(codec, rows, weights))
    assert np.abs(ours / value - 1).max() <= 5e-3


@each_searched
@pytest.mark.parametrize("sign", [1, -1])
def test_near_the_largest(codec: BlockCodec, sign: int) -> None:
    """70 % of what float16 scales can hold is held, half as much again is refused."""
    high = {"Q4_1": 1, "Q3_K": 32 * 4, "Q4_K": 63 * 15, "Q5_K": 63 * 31, "Q6_K": 128 * 32}
    low = high | {"Q4_K": 63, "Q5_K": 63}  # a minimum
    largest = 65504.0 * (high if sign > 0 else low)[codec.name]
    rows = np.full((2, COLUMNS), sign * 0.7 * largest, np.float32)
    ours = ggml.dequantize(codec.name, encoded(codec, rows))
    assert np.abs(ours / rows - 1).max() <= 5e-3
    with pytest.raises(InputError, match=f"{codec.name} cannot hold"):
        codec.encode(torch.from_numpy(rows * 1.5))


@every
def test_zeros_are_zero_bytes_of_scale(codec: BlockCodec) -> None:
    rows = torch.zeros(2, COLUMNS)
    (coded,) = codec.encode(rows)
    assert not codec.unpack(coded.reshape(-1, codec.block_bytes)).d.any()
    assert torch.equal(codec.decode_rows(coded, rows.shape), rows)


@each_searched
def test_a_search_is_better_than_its_first_start(
    codec: BlockCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tensors()["heavy tails"]
    best = error(rows, ggml.dequantize(codec.name, encoded(codec, rows)), None)
    search = codec.search
    starts = "end_shifts" if isinstance(search, ScaleMinSearch) else "extreme_codes"
    settings = {starts: getattr(search, starts)[:1], "refits": 0}
    fewer_starts = replace(search, **settings)  # type: ignore[type-var]
    monkeypatch.setattr(type(codec), "search", fewer_starts)
    first = error(rows, ggml.dequantize(codec.name, encoded(codec, rows)), None)
    assert best < 0.99 * first


@every
@weighted
def test_any_chunking_and_number_of_processes_gives_the_same_bytes(
    codec: BlockCodec, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tensors()["heavy tails"]
    weights = importance(COLUMNS) if weighted else None
    whole = encoded(codec, rows, weights)
    parts = [encoded(codec, rows[n : n + 5], weights) for n in range(0, len(rows), 5)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    for name in ("TILE", "SEARCH_TILE"):
        monkeypatch.setattr(block_codec, name, 7 * 256)
    np.testing.assert_array_equal(encoded(codec, rows, weights), whole)
    monkeypatch.setattr(block_codec, "PROCESS_TILE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    np.testing.assert_array_equal(encoded(codec, rows, weights), whole)


@each_searched
def test_an_error_in_a_worker_is_raised(codec: BlockCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_codec, "PROCESS_TILE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    rows = torch.ones(64, COLUMNS)
    rows[1:, 7] = torch.nan
    with pytest.raises(InputError, match=f"{codec.name} cannot hold"):
        codec.encode(rows)


@each_searched
@weighted
def test_only_ratios_of_weights_matter(codec: BlockCodec, weighted: bool) -> None:
    rows, share = torch.from_numpy(tensors()["normal"]), torch.from_numpy(importance(COLUMNS))
    (coded,) = codec.encode(rows, share)
    assert torch.equal(codec.encode(rows, share * 2.0**20)[0], coded)
    assert torch.equal(codec.encode(rows, share.expand(rows.shape))[0], coded)
    assert not torch.equal(codec.encode(rows)[0], coded)


@every
def test_weights_with_columns_of_none_and_all_none(codec: BlockCodec) -> None:
    """A column that no input reached counts for nothing, and is not lost where none counts."""
    rows = torch.from_numpy(tensors()["normal"])
    share = torch.from_numpy(importance(COLUMNS))
    share[64:96] = 0
    decoded = codec.decode(codec.encode(rows, share), rows.shape)
    assert decoded.isfinite().all()
    assert codec.decode(codec.encode(rows, torch.zeros(COLUMNS)), rows.shape).isfinite().all()


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_type_is_taken(codec: BlockCodec, dtype: torch.dtype) -> None:
    rows = torch.from_numpy(tensors()["normal"]).to(dtype)
    assert torch.equal(codec.encode(rows)[0], codec.encode(rows.float())[0])


@each_searched
@pytest.mark.parametrize("shape", [(4, 255), (4, 31), (256,)])
def test_rows_must_divide_into_blocks(codec: BlockCodec, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=f"multiple of {codec.block_size}"):
        codec.encode(torch.zeros(shape))


@each_searched
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -3e38, 3e9])
def test_weights_beyond_every_scale_are_refused(codec: BlockCodec, value: float) -> None:
    rows = torch.zeros(2, COLUMNS)
    rows[1, 40] = value
    with pytest.raises(InputError, match=f"{codec.name} cannot hold"):
        codec.encode(rows)


@each_searched
def test_array_is_described(codec: BlockCodec) -> None:
    (array,) = codec.arrays((6, COLUMNS))
    assert (array.suffix, array.shape, array.dtype) == ("", (6, COLUMNS), codec.name)
    size, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[codec.name]]
    assert (codec.block_size, codec.block_bytes) == (size, nbytes)
    assert array.row_bytes == COLUMNS // size * nbytes
    assert codec.encode(torch.zeros(6, COLUMNS))[0].shape == (6, array.row_bytes)
