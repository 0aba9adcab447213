"""Plans: everything that will be written, from headers alone, before a byte is written."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from cgconvert.codecs.encoding import Encoding
from cgconvert.io.progress import Progress, human_bytes
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.model.tensor import LazyTensor

__all__ = [
    "CHUNK_BYTES",
    "FilePlan",
    "Item",
    "LazyPlan",
    "Piece",
    "Plan",
    "cores",
    "free_space",
    "lay_out",
]

CHUNK_BYTES = 8 << 20
"""float32 bytes of a chunk of rows: large enough for the disk, small enough for every core to have
one."""
STRIDED_BYTES = 64 << 20
"""float32 bytes of a chunk whose rows are columns of the file: it takes a read for each row of the
file, so a narrow chunk costs as many reads as a wide one."""
IN_FLIGHT_BYTES = 256 << 20
"""float32 bytes of all chunks that are worked on at once, on any number of cores."""
MOST_PROCESSES = 16
"""More do not help: the disk is the limit then."""
PROCESS_BYTES = 16 << 20
"""Memory of a worker process without a chunk."""


@dataclass(frozen=True)
class Piece:
    """One stored array: `offset` in bytes from the start of its file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    row_bytes: int


@dataclass(frozen=True)
class Item:
    """One tensor of the model, how it is encoded, and where its arrays go."""

    name: str
    source: LazyTensor
    encoding: Encoding
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        return sum(piece.nbytes for piece in self.pieces)

    @property
    def rows(self) -> int:
        return self.source.shape[0] if self.source.shape else 1

    @property
    def chunk_rows(self) -> int:
        width = math.prod(self.source.shape[1:]) * 4
        size = STRIDED_BYTES if self.source.strided else CHUNK_BYTES
        return max(1, size // max(1, width))

    @property
    def chunk_bytes(self) -> int:
        """float32 bytes of the item's largest chunk."""
        return min(self.chunk_rows, self.rows) * math.prod(self.source.shape[1:]) * 4

    def bytes_of(self, rows: slice) -> int:
        """Bytes that are written for these rows."""
        count: int = rows.stop - rows.start
        return count * sum(piece.row_bytes for piece in self.pieces)

    def chunks(self) -> Iterator[slice]:
        """Yield ranges of rows that cover the item in order."""
        for start in range(0, self.rows, self.chunk_rows):
            yield slice(start, min(self.rows, start + self.chunk_rows))


@dataclass(frozen=True)
class FilePlan:
    """A file: fixed bytes at the start, then tensors. Gaps between pieces are zero bytes.

    `size` is the length of the whole file in bytes, by default up to the end of its last piece.
    """

    path: str
    header: bytes = b""
    items: tuple[Item, ...] = ()
    size: int = -1

    def __post_init__(self) -> None:
        if self.size < 0:
            ends = [piece.offset + piece.nbytes for item in self.items for piece in item.pieces]
            object.__setattr__(self, "size", max([len(self.header), *ends]))


@dataclass(frozen=True)
class Plan:
    """An artefact to be written at `output`: a folder, or (`folder` false) the one file itself.

    `source` is the model whose tensors are written; the manifest names its files. `format` and
    `type` name the artefact (for example gguf, Q8_0); paths of `files` are relative to the folder,
    or the file's own name; `options` go into the manifest.
    """

    resolved: ClassVar[bool] = True

    source: Checkpoint
    output: Path
    folder: bool
    format: str
    type: str
    files: tuple[FilePlan, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def items(self) -> Iterable[Item]:
        return (item for file in self.files for item in file.items)

    @property
    def peak_memory(self) -> int:
        """Upper bound of the memory of a run beyond the interpreter's, with this number of cores.

        For every chunk in flight: the numbers read, their float32 and an encoding's intermediate
        results. Then each process's own memory, and the fixed bytes of all files.
        """
        largest = max((item.chunk_bytes for item in self.items), default=0)
        in_flight = max(largest, min(cores() * largest, IN_FLIGHT_BYTES))
        fixed = cores() * PROCESS_BYTES + sum(len(file.header) for file in self.files)
        return 3 * in_flight + fixed

    def describe(self) -> str:
        """A line for each file and each stored array, then size, free space and memory."""
        lines = []
        for file in self.files:
            lines.append(f"{file.path}  {human_bytes(file.size)}")
            for item in file.items:
                stored = str(item.source.stored_dtype).removeprefix("torch.")
                origin = f"from {stored} {_dimensions(item.source.shape)}"
                lines += [
                    f"  {piece.name:<48} {piece.dtype:<6} {_dimensions(piece.shape):>14} "
                    f"{piece.nbytes:>14,} B  {origin}"
                    for piece in item.pieces
                ]
        lines.append(
            f"{self.output}: {human_bytes(self.nbytes)} to write "
            f"({human_bytes(free_space(self.output))} free), "
            f"about {human_bytes(self.peak_memory)} of memory beyond the interpreter's"
        )
        return "\n".join(lines)

    def resolve(self, folder: Path, progress: Progress) -> Plan:
        """Return the plan itself: nothing has to be computed."""
        return self


class LazyPlan(Protocol):
    """A plan for `output` that may have to be computed first; a Plan is one that need not be.

    `resolved` is false where `resolve` computes for a while. `source` is the model and `format`
    the artefact's; `nbytes` is the most disk space needed, intermediate results included.
    """

    @property
    def resolved(self) -> bool: ...

    @property
    def source(self) -> Checkpoint: ...

    @property
    def output(self) -> Path: ...

    @property
    def format(self) -> str: ...

    @property
    def nbytes(self) -> int: ...

    def describe(self) -> str:
        """Describe in a line or more what will be computed or written, and what that needs."""

    def resolve(self, folder: Path, progress: Progress) -> Plan:
        """Compute the plan, keeping completed steps in `folder` for a later run."""


def free_space(output: Path) -> int:
    """Bytes free on the disk that will hold `output`."""
    folder = Path(os.path.abspath(output)).parent
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _dimensions(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def lay_out(
    tensors: Iterable[tuple[str, LazyTensor, Encoding]], *, start: int = 0, align: int = 1
) -> tuple[Item, ...]:
    """Place the arrays of all tensors one after the other.

    Args:
        tensors: Name, source and encoding of each tensor.
        start: Byte of the file where the first array begins at the earliest.
        align: Every array begins at a multiple of this number of bytes.
    """
    items, offset = [], start
    for name, source, encoding in tensors:
        pieces = []
        for array in encoding.arrays(source.shape):
            offset = -(-offset // align) * align
            rows = source.shape[0] if source.shape else 1
            nbytes = rows * array.row_bytes
            pieces.append(
                Piece(name + array.suffix, array.dtype, array.shape, offset, nbytes,
                      array.row_bytes)
            )  # fmt: skip
            offset += nbytes
        items.append(Item(name, source, encoding, tuple(pieces)))
    return tuple(items)


def cores() -> int:
    """Number of chunks worked on at once: torch's number of threads (OMP_NUM_THREADS)."""
    return min(torch.get_num_threads(), MOST_PROCESSES)
