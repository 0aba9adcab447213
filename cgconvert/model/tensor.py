"""Lazy tensors: where a tensor's numbers lie, and how some of its rows and columns are read.

Nothing is read before `read` is called, and only the rows and columns that it names, so memory
follows the size of a chunk, never that of the model. Files are read with pread and not mapped:
mapped pages count as resident memory, and a file cut short while it is mapped ends the process with
SIGBUS.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from cgconvert.errors import InputError

__all__ = ["Cast", "InMemory", "LazyTensor", "RowBias", "Rows", "Stacked", "Stored", "Zeros"]

ALL = slice(None)


class LazyTensor(ABC):
    """A tensor of one or two dimensions, read by rows and columns.

    Attributes:
        shape: The logical shape.
        dtype: The type that `read` returns.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @abstractmethod
    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        """Read the part [rows, cols] (only rows of one dimension) into a new tensor.

        Raises InputError where the file ends too early.
        """

    @property
    @abstractmethod
    def parents(self) -> tuple[LazyTensor, ...]:
        """The lazy tensors that this one is read from."""

    @property
    def stored_dtype(self) -> torch.dtype:
        """The type of the numbers in the file, before any cast."""
        return self.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor in `dtype`."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def T(self) -> LazyTensor:  # noqa: N802 - the name torch and numpy use
        """The transposed tensor."""
        return Transposed(self)

    def leaves(self) -> Iterator[Stored]:
        """The tensors of files that it is read from in the end."""
        for parent in self.parents:
            yield from parent.leaves()

    @property
    def strided(self) -> bool:
        """Whether a row's numbers lie far from each other in the file."""
        return any(parent.strided for parent in self.parents)

    def to(self, dtype: torch.dtype) -> LazyTensor:
        """The same numbers, rounded to another type where it is narrower."""
        return self if dtype == self.dtype else Cast(self, dtype)

    def rows(self, index: np.ndarray) -> LazyTensor:
        """The tensor made of these rows, in this order."""
        if np.array_equal(index, np.arange(self.shape[0])):
            return self
        return Rows(self, index)


@dataclass(frozen=True)
class Stored(LazyTensor):
    """A row-major tensor at a byte offset of a file."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    name: str = ""

    @property
    def parents(self) -> tuple[LazyTensor, ...]:
        return ()

    def leaves(self) -> Iterator[Stored]:
        yield self

    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        if len(self.shape) == 0:
            return self._at(0, 1).reshape(())
        start, stop, _ = rows.indices(self.shape[0])
        width = math.prod(self.shape[1:])
        left, right, _ = cols.indices(width) if len(self.shape) == 2 else (0, width, 1)
        if (left, right) != (0, width):
            return self._columns(start, stop, left, right)
        flat = self._at(start * width, max(0, stop - start) * width)
        return flat.reshape(-1, *self.shape[1:])

    def _at(self, first: int, count: int) -> torch.Tensor:
        """`count` elements from element `first`."""
        numbers = torch.empty(count, dtype=self.dtype)
        with open(self.path, "rb", buffering=0) as file:
            self._fill(file.fileno(), _bytes(numbers), first)
        return numbers

    def _columns(self, start: int, stop: int, left: int, right: int) -> torch.Tensor:
        """Some columns of some rows, with a read for each row."""
        width = self.shape[1]
        numbers = torch.empty((max(0, stop - start), max(0, right - left)), dtype=self.dtype)
        view, line = _bytes(numbers), numbers.shape[1] * self.dtype.itemsize
        with open(self.path, "rb", buffering=0) as file:
            for row in range(numbers.shape[0]):
                part = view[row * line : (row + 1) * line]
                self._fill(file.fileno(), part, (start + row) * width + left)
        return numbers

    def _fill(self, descriptor: int, view: memoryview, first: int) -> None:
        """Fill memory with the file's bytes from element `first` on."""
        position = self.offset + first * self.dtype.itemsize
        while view:
            try:
                count = os.preadv(descriptor, [view], position)
            except OSError as error:
                raise InputError(f"{self.path}: cannot be read: {error.strerror}") from error
            if count == 0:
                raise InputError(
                    f"{self.path}: the file ends inside tensor {self.name or '?'}; "
                    "it is truncated, fetch it again"
                )
            view, position = view[count:], position + count


@dataclass(frozen=True)
class InMemory(LazyTensor):
    """A tensor in memory."""

    tensor: torch.Tensor

    @property
    def parents(self) -> tuple[LazyTensor, ...]:
        return ()

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.tensor.dtype

    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        if self.tensor.ndim < 2:
            return self.tensor[rows].clone() if self.tensor.ndim else self.tensor.clone()
        return self.tensor[rows, cols].contiguous()


@dataclass(frozen=True)
class Zeros(LazyTensor):
    """Zeros, for a bias that CodeGen does not have and a target format demands."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def parents(self) -> tuple[LazyTensor, ...]:
        return ()

    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        slices = (rows, cols)[: len(self.shape)]
        shape = [len(range(*s.indices(n))) for s, n in zip(slices, self.shape, strict=True)]
        return torch.zeros(shape, dtype=self.dtype)


@dataclass(frozen=True)
class Transposed(LazyTensor):
    """A matrix [a, b] as [b, a]."""

    source: LazyTensor

    @property
    def parents(self) -> tuple[LazyTensor, ...]:
        return (self.source,)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.source.shape[::-1]

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.source.dtype

    @property
    def stored_dtype(self) -> torch.dtype:
        return self.source.stored_dtype

    @property
    def T(self) -> LazyTensor:  # noqa: N802
        return self.source

    @property
    def strided(self) -> bool:
        return not self.source.strided

    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        return self.source.read(cols, rows).T.contiguous()


@dataclass(frozen=True)
class Cast(LazyTensor):
    """The same numbers in another type, rounded to nearest even."""

    source: LazyTensor
    dtype: torch.dtype

    @property
    def parents(self) -> tuple[LazyTensor, ...]:
        return (self.source,)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.source.shape

    @property
    def stored_dtype(self) -> torch.dtype:
        return self.source.stored_dtype

    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        return self.source.read(rows, cols).to(self.dtype)


@dataclass(frozen=True)
class RowBias(LazyTensor):
    """weight [rows, columns] + bias [columns] in every row, added in float32.

    Jaxformer's embedding is a Linear on one-hot rows, so its table is w + b.
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
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return torch.float32

    @property
    def stored_dtype(self) -> torch.dtype:
        return self.weight.stored_dtype

    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        return self.weight.read(rows, cols).float() + self.bias.read(cols).float()


class Rows(LazyTensor):
    """Some rows of a tensor in another order."""

    def __init__(self, source: LazyTensor, index: np.ndarray) -> None:
        self.source: LazyTensor = source
        self.index: np.ndarray = index
        if isinstance(source, Rows):
            self.source, self.index = source.source, source.index[index]
        self.shape = (len(index), *source.shape[1:])
        self.dtype = source.dtype

    @property
    def parents(self) -> tuple[LazyTensor, ...]:
        return (self.source,)

    @property
    def stored_dtype(self) -> torch.dtype:
        return self.source.stored_dtype

    def rows(self, index: np.ndarray) -> LazyTensor:
        return self.source.rows(self.index[index])

    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        numbers = self.index[rows]
        order = np.argsort(numbers, kind="stable")
        ascending = numbers[order]
        runs = np.split(ascending, np.flatnonzero(np.diff(ascending) != 1) + 1)
        pieces = [
            self.source.read(slice(int(run[0]), int(run[-1]) + 1), cols) for run in runs if len(run)
        ]
        if not pieces:
            return self.source.read(slice(0, 0), cols)
        sorted_rows = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        if np.array_equal(order, np.arange(len(order))):
            return sorted_rows
        return sorted_rows[torch.from_numpy(np.argsort(order))]


class Stacked(LazyTensor):
    """Tensors one below the other."""

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
    def stored_dtype(self) -> torch.dtype:
        return self.sources[0].stored_dtype

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *np.cumsum([s.shape[0] for s in self.sources]).tolist()]

    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        start, stop, _ = rows.indices(self.shape[0])
        pieces = []
        for source, first in zip(self.sources, self._starts, strict=False):
            low, high = max(start - first, 0), min(stop - first, source.shape[0])
            if low < high:
                pieces.append(source.read(slice(low, high), cols))
        return torch.cat(pieces) if pieces else self.sources[0].read(slice(0, 0), cols)


def _bytes(numbers: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor, through which it can be filled."""
    return numbers.reshape(-1).view(torch.uint8).numpy().data
