"""Lazy tensors: they know where their numbers are stored, and read some rows and columns of them.

Nothing is read before `read` is called, and then only the rows and columns that are asked for, so
that memory depends on the size of a chunk and not on that of the model. Files are read with pread
and not mapped: mapped pages count as resident memory, and if a mapped file is cut short, the
process ends with SIGBUS.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import FileIO
from pathlib import Path

import numpy as np

from cgconvert.errors import InputError
from cgconvert.io.reading import open_unbuffered
from cgconvert.io.system.files import read_at
from cgconvert.lazy import torch
from cgconvert.model.dtype import FLOAT32, DType, dtype_of

__all__ = [
    "CastTensor",
    "FirstColumns",
    "InMemoryTensor",
    "LastAxis",
    "LazyTensor",
    "RowBias",
    "SelectedRows",
    "StackedTensor",
    "StoredTensor",
    "TransposedTensor",
    "Zeros",
]

ALL = slice(None)
"""All rows, or all columns."""


class LazyTensor(ABC):
    """A tensor of at most two dimensions, read by rows and columns.

    Attributes:
        shape: The shape of the tensor that `read` returns if everything is read.
        dtype: The type of the numbers that `read` returns.
    """

    shape: tuple[int, ...]
    dtype: DType

    @abstractmethod
    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        """Read the elements [rows, cols] into a new tensor; `cols` applies to two dimensions only.

        Raises InputError if the file cannot be read or ends too early.
        """

    @property
    @abstractmethod
    def parents(self) -> tuple[LazyTensor, ...]:
        """The lazy tensors that this one reads from; none if it reads a file or memory."""

    @property
    def stored_dtype(self) -> DType:
        """The type of the numbers in the file; it differs from `dtype` if the tensor casts them."""
        return self.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor in `dtype`."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def T(self) -> LazyTensor:  # noqa: N802 - the name torch and numpy use
        """The transposed tensor."""
        return TransposedTensor(self)

    def leaves(self) -> Iterator[StoredTensor]:
        """Yield the stored tensors from which this one is read, directly or through others."""
        for parent in self.parents:
            yield from parent.leaves()

    @property
    def is_strided(self) -> bool:
        """Whether a row's numbers are not adjacent in the file, so that reading rows is slow."""
        return any(parent.is_strided for parent in self.parents)

    def to(self, dtype: DType) -> LazyTensor:
        """The tensor in another type; numbers are rounded if that type is narrower."""
        return self if dtype == self.dtype else CastTensor(self, dtype)

    def rows(self, indices: np.ndarray) -> LazyTensor:
        """The tensor made of the rows with these indices, in this order."""
        if np.array_equal(indices, np.arange(self.shape[0])):
            return self
        return SelectedRows(self, indices)


@dataclass(frozen=True)
class StoredTensor(LazyTensor):
    """A row-major tensor in a file.

    Attributes:
        path: The file.
        offset: Where the first element begins, in bytes from the start of the file.
        name: The tensor's name in the file, for error messages.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: DType
    name: str = ""

    @property
    def parents(self) -> tuple[LazyTensor, ...]:
        return ()

    def leaves(self) -> Iterator[StoredTensor]:
        yield self

    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        if len(self.shape) == 0:
            return self._read_elements(0, 1).reshape(())
        start, stop, _ = rows.indices(self.shape[0])
        width = math.prod(self.shape[1:])
        left, right, _ = cols.indices(width) if len(self.shape) == 2 else (0, width, 1)
        if (left, right) != (0, width):
            return self._read_columns(start, stop, left, right)
        elements = self._read_elements(start * width, max(0, stop - start) * width)
        return elements.reshape(-1, *self.shape[1:])

    def _read_elements(self, start: int, count: int) -> torch.Tensor:
        """Read `count` elements, starting at element number `start`, into a flat tensor."""
        elements = torch.empty(count, dtype=self.dtype.torch_dtype)
        with self._open() as file:
            self._fill(file.fileno(), _memory(elements), start)
        return elements

    def _read_columns(self, start: int, stop: int, left: int, right: int) -> torch.Tensor:
        """Read columns `left` to `right` of rows `start` to `stop`, with one read for each row."""
        width = self.shape[1]
        part = torch.empty(
            (max(0, stop - start), max(0, right - left)), dtype=self.dtype.torch_dtype
        )
        memory, row_bytes = _memory(part), part.shape[1] * self.dtype.itemsize
        with self._open() as file:
            for row in range(part.shape[0]):
                row_memory = memory[row * row_bytes : (row + 1) * row_bytes]
                self._fill(file.fileno(), row_memory, (start + row) * width + left)
        return part

    def _open(self) -> FileIO:
        """Open the file. Raises InputError."""
        return open_unbuffered(self.path)

    def _fill(self, descriptor: int, memory: memoryview, start: int) -> None:
        """Fill all of `memory` from the file, starting at element number `start`."""
        offset = self.offset + start * self.dtype.itemsize
        while memory:
            try:
                count = read_at(descriptor, memory, offset)
            except OSError as error:
                raise InputError(f"{self.path}: cannot be read: {error.strerror}") from error
            if count == 0:
                raise InputError(
                    f"{self.path}: the file ends inside tensor {self.name or '?'}; "
                    "it is truncated, fetch it again"
                )
            memory, offset = memory[count:], offset + count


LAST_AXIS_BYTES = 4 << 20
"""Bytes that `LastAxis` reads at once, of which it keeps those at its index."""


@dataclass(frozen=True)
class LastAxis(LazyTensor):
    """The elements at one index of the last axis of a stored tensor of two or three axes.

    The other elements lie between them in the file and are read too, piece by piece.
    """

    source: StoredTensor
    index: int

    @property
    def parents(self) -> tuple[LazyTensor, ...]:
        return (self.source,)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.source.shape[:-1]

    @property
    def dtype(self) -> DType:  # type: ignore[override]
        return self.source.dtype

    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        length = self.source.shape[-1]
        start, stop, _ = rows.indices(self.shape[0])
        left, right, _ = cols.indices(self.shape[1]) if len(self.shape) == 2 else (0, 1, 1)
        flat = (self.shape[0], math.prod(self.source.shape[1:]))
        source = replace(self.source, shape=flat)
        kept = torch.empty(
            (max(0, stop - start), max(0, right - left)), dtype=self.dtype.torch_dtype
        )
        step = max(1, LAST_AXIS_BYTES // max(1, (right - left) * length * self.dtype.itemsize))
        for first in range(0, len(kept), step):
            last = min(first + step, len(kept))
            piece = source.read(
                slice(start + first, start + last), slice(left * length, right * length)
            )
            kept[first:last] = piece.reshape(last - first, -1, length)[..., self.index]
        return kept if len(self.shape) == 2 else kept.reshape(-1)


@dataclass(frozen=True)
class InMemoryTensor(LazyTensor):
    """A tensor that is in memory already."""

    tensor: torch.Tensor

    @property
    def parents(self) -> tuple[LazyTensor, ...]:
        return ()

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> DType:  # type: ignore[override]
        return dtype_of(self.tensor.dtype)

    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        if self.tensor.ndim < 2:
            return self.tensor[rows].clone() if self.tensor.ndim else self.tensor.clone()
        return self.tensor[rows, cols].contiguous()


@dataclass(frozen=True)
class Zeros(LazyTensor):
    """Zeros, for a bias that a target format requires and CodeGen does not have."""

    shape: tuple[int, ...]
    dtype: DType

    @property
    def parents(self) -> tuple[LazyTensor, ...]:
        return ()

    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        slices = (rows, cols)[: len(self.shape)]
        shape = [len(range(*s.indices(n))) for s, n in zip(slices, self.shape, strict=True)]
        return torch.zeros(shape, dtype=self.dtype.torch_dtype)


@dataclass(frozen=True)
class TransposedTensor(LazyTensor):
    """The transpose of another tensor."""

    source: LazyTensor

    @property
    def parents(self) -> tuple[LazyTensor, ...]:
        return (self.source,)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.source.shape[::-1]

    @property
    def dtype(self) -> DType:  # type: ignore[override]
        return self.source.dtype

    @property
    def stored_dtype(self) -> DType:
        return self.source.stored_dtype

    @property
    def T(self) -> LazyTensor:  # noqa: N802
        return self.source

    @property
    def is_strided(self) -> bool:
        return not self.source.is_strided

    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        return self.source.read(cols, rows).T.contiguous()


@dataclass(frozen=True)
class FirstColumns(LazyTensor):
    """The first columns of another matrix: a tensor whose rows have a gap between them."""

    source: LazyTensor
    count: int

    @property
    def parents(self) -> tuple[LazyTensor, ...]:
        return (self.source,)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.source.shape[0], self.count)

    @property
    def dtype(self) -> DType:  # type: ignore[override]
        return self.source.dtype

    @property
    def stored_dtype(self) -> DType:
        return self.source.stored_dtype

    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        left, right, _ = cols.indices(self.count)
        return self.source.read(rows, slice(left, right))


@dataclass(frozen=True)
class CastTensor(LazyTensor):
    """Another tensor, cast to `dtype`; numbers are rounded to nearest even."""

    source: LazyTensor
    dtype: DType

    @property
    def parents(self) -> tuple[LazyTensor, ...]:
        return (self.source,)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.source.shape

    @property
    def stored_dtype(self) -> DType:
        return self.source.stored_dtype

    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        return self.source.read(rows, cols).to(self.dtype.torch_dtype)


@dataclass(frozen=True)
class RowBias(LazyTensor):
    """A matrix [rows, columns] with a bias [columns] added to every row, in float32.

    Jaxformer's embedding is a linear layer on one-hot rows, so that the embedding table is the
    layer's weight with its bias added to every row.
    """

    weight: LazyTensor
    bias: LazyTensor

    @property
    def parents(self) -> tuple[LazyTensor, ...]:
        return (self.weight, self.bias)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.weight.shape

    @property
    def dtype(self) -> DType:  # type: ignore[override]
        return FLOAT32

    @property
    def stored_dtype(self) -> DType:
        return self.weight.stored_dtype

    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        return self.weight.read(rows, cols).float() + self.bias.read(cols).float()


class SelectedRows(LazyTensor):
    """Rows of another tensor, chosen and ordered by their indices."""

    def __init__(self, source: LazyTensor, indices: np.ndarray) -> None:
        self.source: LazyTensor = source
        self.indices: np.ndarray = indices
        if isinstance(source, SelectedRows):
            self.source, self.indices = source.source, source.indices[indices]
        self.shape = (len(indices), *source.shape[1:])
        self.dtype = source.dtype

    @property
    def parents(self) -> tuple[LazyTensor, ...]:
        return (self.source,)

    @property
    def stored_dtype(self) -> DType:
        return self.source.stored_dtype

    def rows(self, indices: np.ndarray) -> LazyTensor:
        return self.source.rows(self.indices[indices])

    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        """Read the rows in ascending order, adjacent ones at once, then put them in order."""
        indices = self.indices[rows]
        order = np.argsort(indices, kind="stable")
        ascending = indices[order]
        runs = np.split(ascending, np.flatnonzero(np.diff(ascending) != 1) + 1)
        parts = [
            self.source.read(slice(int(run[0]), int(run[-1]) + 1), cols) for run in runs if len(run)
        ]
        if not parts:
            return self.source.read(slice(0, 0), cols)
        sorted_rows = torch.cat(parts) if len(parts) > 1 else parts[0]
        if np.array_equal(order, np.arange(len(order))):
            return sorted_rows
        return sorted_rows[torch.from_numpy(np.argsort(order))]


class StackedTensor(LazyTensor):
    """Several tensors stacked along their rows, in order."""

    def __init__(self, sources: Sequence[LazyTensor]) -> None:
        if len({(s.shape[1:], s.dtype) for s in sources}) != 1:
            raise ValueError("stacked tensors differ in width or type")
        self.sources = tuple(sources)
        self.shape = (sum(s.shape[0] for s in sources), *sources[0].shape[1:])
        self.dtype = sources[0].dtype

    @property
    def parents(self) -> tuple[LazyTensor, ...]:
        return self.sources

    @property
    def stored_dtype(self) -> DType:
        return self.sources[0].stored_dtype

    @cached_property
    def _first_rows(self) -> list[int]:
        """The row of this tensor at which each source begins."""
        ends: list[int] = np.cumsum([source.shape[0] for source in self.sources]).tolist()
        return [0, *ends[:-1]]

    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        """Read only from those sources that have some of the rows."""
        start, stop, _ = rows.indices(self.shape[0])
        parts = []
        for source, first_row in zip(self.sources, self._first_rows, strict=True):
            low, high = max(start - first_row, 0), min(stop - first_row, source.shape[0])
            if low < high:
                parts.append(source.read(slice(low, high), cols))
        return torch.cat(parts) if parts else self.sources[0].read(slice(0, 0), cols)


def _memory(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor as bytes; what is written there changes the tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
