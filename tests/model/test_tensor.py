"""Lazy tensors read what slicing the whole tensor gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cgconvert.errors import InputError
from cgconvert.model.dtype import BFLOAT16, FLOAT16, FLOAT32
from cgconvert.model.tensor import (
    ALL,
    CastTensor,
    FirstColumns,
    InMemoryTensor,
    LazyTensor,
    RowBias,
    SelectedRows,
    StackedTensor,
    StoredTensor,
    Zeros,
)

WHOLE = torch.arange(7 * 5, dtype=torch.float32).reshape(7, 5)


@pytest.fixture
def stored(tmp_path: Path) -> StoredTensor:
    path = tmp_path / "numbers"
    path.write_bytes(b"head" + WHOLE.numpy().tobytes())
    return StoredTensor(path, 4, (7, 5), FLOAT32, "numbers")


BLOCKS = [(ALL, ALL), (slice(2, 5), ALL), (slice(0, 7), slice(1, 4)), (slice(6, 7), slice(4, 5)),
          (slice(3, 3), ALL)]  # fmt: skip


def check(lazy: LazyTensor, whole: torch.Tensor) -> None:
    assert tuple(lazy.shape) == tuple(whole.shape)
    for rows, cols in BLOCKS:
        part = lazy.read(rows, cols)
        assert part.is_contiguous()
        assert part.dtype == lazy.dtype.torch_dtype
        torch.testing.assert_close(part, whole[rows, cols], rtol=0, atol=0)


def test_a_stored_tensor_reads_any_part(stored: StoredTensor) -> None:
    check(stored, WHOLE)


def test_a_transposed_tensor_reads_any_part(stored: StoredTensor) -> None:
    check(stored.T, WHOLE.T)
    assert stored.T.T is stored


def test_first_columns_read_any_part(stored: StoredTensor) -> None:
    check(FirstColumns(stored, 4), WHOLE[:, :4])
    check(FirstColumns(stored.T, 6).T, WHOLE[:6])


def test_rows_in_any_order(stored: StoredTensor) -> None:
    index = np.array([6, 0, 1, 2, 5, 3, 4])
    check(stored.rows(index), WHOLE[index])
    check(stored.rows(index).T, WHOLE[index].T)


def test_rows_of_rows_are_rows_of_the_stored_tensor(stored: StoredTensor) -> None:
    first, second = np.array([6, 0, 1, 2, 5, 3, 4]), np.array([1, 2, 0, 6, 5, 4, 3])
    reordered = stored.rows(first).rows(second)
    assert isinstance(reordered, SelectedRows)
    assert reordered.source is stored
    check(reordered, WHOLE[first][second])
    assert stored.rows(first).rows(np.argsort(first)) is stored


def test_stacked_tensors_read_any_part(stored: StoredTensor) -> None:
    stacked = StackedTensor(
        [InMemoryTensor(WHOLE[:3]), InMemoryTensor(WHOLE[3:4]), InMemoryTensor(WHOLE[4:])]
    )
    check(stacked, WHOLE)
    with pytest.raises(ValueError, match="differ"):
        StackedTensor([stored, InMemoryTensor(WHOLE.half())])


def test_cast_keeps_the_stored_type(stored: StoredTensor) -> None:
    check(stored.to(FLOAT16), WHOLE.half())
    assert stored.to(FLOAT16).stored_dtype == FLOAT32
    assert stored.to(FLOAT32) is stored
    assert isinstance(stored.to(BFLOAT16), CastTensor)


def test_row_bias_is_added_in_float32() -> None:
    weight, bias = WHOLE.half() / 3, torch.full((5,), 1e-4)
    lazy = RowBias(InMemoryTensor(weight), InMemoryTensor(bias))
    check(lazy, weight.float() + bias)
    assert not torch.equal(lazy.read().half(), weight)


def test_zeros_of_one_and_two_dimensions() -> None:
    check(Zeros((7, 5), FLOAT16), torch.zeros(7, 5, dtype=torch.float16))
    assert Zeros((5,), FLOAT32).read(slice(1, 3)).shape == (2,)


def test_vectors_are_read_by_rows(tmp_path: Path) -> None:
    path = tmp_path / "vector"
    path.write_bytes(WHOLE[0].numpy().tobytes())
    vector = StoredTensor(path, 0, (5,), FLOAT32)
    torch.testing.assert_close(vector.read(slice(1, 3)), WHOLE[0, 1:3])


def test_a_file_that_ends_too_early_is_named(stored: StoredTensor) -> None:
    stored.path.write_bytes(stored.path.read_bytes()[:-1])
    stored.read(slice(0, 6))
    with pytest.raises(InputError, match=r"ends inside tensor numbers; it is truncated"):
        stored.read()
    with pytest.raises(InputError, match="truncated"):
        stored.T.read(slice(4, 5))


def test_a_file_that_vanished_is_named(stored: StoredTensor) -> None:
    stored.path.unlink()
    with pytest.raises(InputError, match="numbers: cannot be read: No such file"):
        stored.read()
