"""Merged matrices: the same numbers whatever is read, within bounds of memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from cgconvert.model.dtype import FLOAT32
from cgconvert.model.low_rank import TILE, LowRankUpdate, ScaledSum
from cgconvert.model.tensor import InMemoryTensor

ROWS, COLUMNS = 3 * TILE + 7, 2 * TILE - 1
"""The last tile of the rows is larger than a tile; there is only one of the columns."""


def update(transposed: bool = False, rank: int = 5) -> LowRankUpdate:
    generator = torch.Generator().manual_seed(rank)
    base, left, right = (
        torch.randn(shape, generator=generator)
        for shape in ((ROWS, COLUMNS), (ROWS, rank), (rank, COLUMNS))
    )
    base = (base.T if transposed else base).half().contiguous()
    factors = InMemoryTensor(left), InMemoryTensor(right.bfloat16())
    return LowRankUpdate(InMemoryTensor(base), *factors, 0.7, transposed)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rank", [1, 5, 64])
def test_every_part_has_the_numbers_of_the_whole(transposed: bool, rank: int) -> None:
    tensor = update(transposed, rank)
    whole = tensor.read()
    assert whole.dtype == torch.float32
    assert tensor.dtype == tensor.stored_dtype == FLOAT32
    height, width = tensor.shape
    for rows in (slice(0, 1), slice(TILE - 1, TILE + 1), slice(3, height - 3), slice(5, 5)):
        assert torch.equal(tensor.read(rows), whole[rows])
        for cols in (slice(0, 1), slice(width // 2, width), slice(7, 7)):
            assert torch.equal(tensor.read(rows, cols), whole[rows, cols])
            assert torch.equal(tensor.T.read(cols, rows), whole[rows, cols].T)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_sum_is_that_of_float64(transposed: bool) -> None:
    tensor = update(transposed)
    product = tensor.left.read().double() @ tensor.right.read().double() * 0.7
    expected = tensor.base.read().double() + (product.T if transposed else product)
    assert torch.allclose(tensor.read().double(), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(tensor.read().double(), tensor.base.read().double(), atol=0.1)


def test_biases_are_added() -> None:
    base, addend = torch.arange(4).half(), torch.ones(4)
    tensor = ScaledSum(InMemoryTensor(base), InMemoryTensor(addend), 0.25)
    assert tensor.read(slice(1, 3)).tolist() == [1.25, 2.25]


MEASURE = """
import resource, sys, torch
from cgconvert.model.dtype import FLOAT32
from cgconvert.model.low_rank import LowRankUpdate
from cgconvert.model.dtype import FLOAT32
from cgconvert.model.tensor import InMemoryTensor
torch.set_num_threads(1)
rows, columns = 60_000, 6144
def tensor(rank):
    base = torch.ones(1, 1, dtype=torch.float16).expand(rows, columns)
    left, right = torch.ones(rows, rank), torch.ones(rank, columns)
    return LowRankUpdate(*map(InMemoryTensor, (base, left, right)), 0.5)
merged = tensor(16)
merged.read(slice(0, 2), slice(0, 2))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for start in range(0, rows, 20_000):
    merged.read(slice(start, start + 341))
    merged.T.read(slice(start // 10, start // 10 + 100))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
"""Reads chunks of rows of 8 MiB and of columns of 24 MiB, as float32, of a matrix of 1.5 GB."""


def test_memory_is_that_of_the_chunk_and_not_of_the_matrix() -> None:
    printed = subprocess.run(
        [sys.executable, "-c", MEASURE], check=True, capture_output=True, text=True, timeout=100
    ).stdout
    assert int(printed) * 1024 < 3 * (24 << 20)
