"""Plans: the files of an artefact and where every array lies in them.

A plan is made from the headers of the source, before a byte is read or written.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from cgconvert.codecs.encoding import Encoding
from cgconvert.io.progress import Progress, format_bytes
from cgconvert.io.system.threads import thread_count
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.tensor import LazyTensor

__all__ = [
    "CHUNK_BYTES",
    "IN_FLIGHT_BYTES",
    "ArrayPlan",
    "FilePlan",
    "LazyPlan",
    "Plan",
    "TensorPlan",
    "free_bytes",
    "lay_out",
    "worker_count",
]

CHUNK_BYTES = 8 << 20
"""Size of a chunk of rows, as float32: large enough for the disk to be quick, small enough for
every core to have a chunk."""

STRIDED_CHUNK_BYTES = 64 << 20
"""Size of a chunk, as float32, of a tensor that is stored transposed: its rows are columns in the
source file. A chunk then takes one read for each row of the file, however narrow the chunk is, so
fewer and larger chunks are quicker."""

IN_FLIGHT_BYTES = 256 << 20
"""Size, as float32, of all chunks that are read, encoded or written at once, on any number of
cores."""

MAX_WORKERS = 16
"""More workers do not help: the disk is the limit then."""

WORKER_BYTES = 16 << 20
"""Memory of a worker process, without its chunk."""


@dataclass(frozen=True)
class ArrayPlan:
    """One array of a file; a quantized tensor is stored as several (its codes, its scales).

    Attributes:
        name: The array's name in the file.
        dtype: The name of its type in the file, for example F16.
        shape: Its shape as stored.
        offset: Where it begins, in bytes from the start of the file.
        nbytes: Its size in bytes.
        row_bytes: Size in bytes of what is stored for one row of the tensor.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    row_bytes: int


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the model, how it is encoded, and where its arrays are stored.

    The tensor is read, encoded and written in chunks of rows.
    """

    name: str
    source: LazyTensor
    encoding: Encoding
    arrays: tuple[ArrayPlan, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def rows(self) -> int:
        """Number of rows; a scalar is one row."""
        return self.source.shape[0] if self.source.shape else 1

    @property
    def chunk_rows(self) -> int:
        """Number of rows in every chunk but the last."""
        row_bytes = math.prod(self.source.shape[1:]) * 4
        chunk_bytes = STRIDED_CHUNK_BYTES if self.source.is_strided else CHUNK_BYTES
        return max(1, chunk_bytes // max(1, row_bytes))

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the largest chunk as float32."""
        return min(self.chunk_rows, self.rows) * math.prod(self.source.shape[1:]) * 4

    def stored_bytes(self, rows: slice) -> int:
        """Bytes that are written for these rows, in all arrays."""
        count: int = rows.stop - rows.start
        return count * sum(array.row_bytes for array in self.arrays)

    def chunks(self) -> Iterator[slice]:
        """Yield the range of rows of each chunk, in order."""
        for start in range(0, self.rows, self.chunk_rows):
            yield slice(start, min(self.rows, start + self.chunk_rows))


@dataclass(frozen=True)
class FilePlan:
    """A file to be written: a header, then the arrays of tensors. Gaps between arrays are zeros.

    Attributes:
        path: Path of the file, relative to the output folder.
        header: The bytes at the start of the file; of a file without tensors, all its bytes.
        tensors: The tensors.
        size: Size of the whole file in bytes. By default the file ends with its last array.
    """

    path: str
    header: bytes = b""
    tensors: tuple[TensorPlan, ...] = ()
    size: int = -1

    def __post_init__(self) -> None:
        if self.size < 0:
            ends = [array.offset + array.nbytes for t in self.tensors for array in t.arrays]
            object.__setattr__(self, "size", max([len(self.header), *ends]))


@dataclass(frozen=True)
class Plan:
    """An artefact to be written.

    Attributes:
        source: The checkpoint whose tensors are written.
        output: Path of the artefact.
        is_folder: Whether the artefact is a folder; if not, it is a single file.
        format: The artefact's format, for example gguf.
        type: The type of its weights, for example Q8_0.
        files: Its files. Their paths are relative to the folder; a single file's path is its name.
        options: The options of the conversion, which the manifest records.
        notes: What the user should know of the artefact, such as what its format cannot hold; a
            line each. Those of the source are its own.
    """

    resolved: ClassVar[bool] = True
    computed_options: ClassVar[tuple[str, ...]] = ()
    steps: ClassVar[int] = 0
    steps_key: ClassVar[str] = ""

    source: Checkpoint
    output: Path
    is_folder: bool
    format: str
    type: str
    files: tuple[FilePlan, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all files, without the manifest."""
        return sum(file.size for file in self.files)

    @property
    def tensors(self) -> Iterable[TensorPlan]:
        """The tensors of all files, in order."""
        return (tensor for file in self.files for tensor in file.tensors)

    @property
    def peak_memory(self) -> int:
        """Upper bound in bytes of the memory that writing takes, without the interpreter's.

        Each chunk in flight is counted three times: as it was read, as float32, and as the
        intermediate results of its encoding. To these come the worker processes' own memory and
        the headers of all files.
        """
        workers = worker_count()
        largest = max((tensor.chunk_bytes for tensor in self.tensors), default=0)
        in_flight = max(largest, min(workers * largest, IN_FLIGHT_BYTES))
        headers = sum(len(file.header) for file in self.files)
        return 3 * in_flight + workers * WORKER_BYTES + headers

    def describe(self) -> str:
        """See LazyPlan: where, of which types, how large, and what writing needs."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors:
            for array in tensor.arrays:
                sizes[array.dtype] = sizes.get(array.dtype, 0) + array.nbytes
        types = ", ".join(f"{dtype} {format_bytes(size)}" for dtype, size in sizes.items())
        count = len(self.files)
        return (
            f"path:  {self.output}\n"
            f"type:  {self.format} {self.type} ({types})\n"
            f"size:  {format_bytes(self.nbytes)} in {count} file{'s' if count > 1 else ''}\n"
            f"needs: {format_bytes(self.nbytes)} to write "
            f"({format_bytes(free_bytes(self.output))} free), "
            f"about {format_bytes(self.peak_memory)} of memory beyond the interpreter's"
        )

    def describe_tensors(self) -> tuple[str, ...]:
        """See LazyPlan."""
        lines = []
        width = max((len(a.name) for tensor in self.tensors for a in tensor.arrays), default=0)
        for file in self.files:
            lines.append(f"{file.path}  {format_bytes(file.size)}")
            for tensor in file.tensors:
                dtype = tensor.source.stored_dtype
                origin = f"from {dtype} {_format_shape(tensor.source.shape)}"
                lines += [
                    f"  {array.name:<{width}} {array.dtype:<6} {_format_shape(array.shape):>14} "
                    f"{array.nbytes:>14,} B  {origin}"
                    for array in tensor.arrays
                ]
        return tuple(lines)

    def resolve(self, folder: Path, progress: Progress) -> Plan:
        """Return the plan itself, because nothing has to be computed."""
        return self


class LazyPlan(Protocol):
    """A plan that may have to be computed before it can be written, as calibration does.

    Attributes:
        resolved: Whether nothing has to be computed; a Plan is always resolved.
        steps: How many steps of progress computing it takes at most.
        source: The checkpoint whose tensors are written.
        output: Path of the artefact.
        is_folder: Whether the artefact is a folder; if not, it is a single file.
        format: The artefact's format, for example gguf.
        options: The options of the conversion that the manifest will record, as far as they are
            known before anything is computed.
        computed_options: Names of further options that the manifest will record.
        steps_key: SHA-256 (hex) of all that the completed steps of computing depend on; "" if
            nothing has to be computed.
        nbytes: The most bytes on the disk at any time, intermediate results included.
        notes: What the user should know of the artefact, such as what its format cannot hold.
    """

    @property
    def resolved(self) -> bool: ...

    @property
    def steps(self) -> int: ...

    @property
    def source(self) -> Checkpoint: ...

    @property
    def output(self) -> Path: ...

    @property
    def is_folder(self) -> bool: ...

    @property
    def format(self) -> str: ...

    @property
    def options(self) -> Mapping[str, Any]: ...

    @property
    def computed_options(self) -> tuple[str, ...]: ...

    @property
    def steps_key(self) -> str: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def describe(self) -> str:
        """Describe what will be computed or written, and what that needs: lines of "name: text"."""

    def describe_tensors(self) -> tuple[str, ...]:
        """Return a line for each file and array, as far as they are known."""

    def resolve(self, folder: Path, progress: Progress) -> Plan:
        """Compute the plan. Completed steps are kept in `folder`, where a later run finds them."""


def lay_out(
    tensors: Iterable[tuple[str, LazyTensor, Encoding]], *, start: int = 0, align: int = 1
) -> tuple[TensorPlan, ...]:
    """Give every array of the tensors its offset in the file, one behind the other.

    Args:
        tensors: Name in the file, source and encoding of each tensor.
        start: The lowest offset in bytes that the first array may have.
        align: Alignment in bytes: every offset is a multiple of it.
    """
    tensor_plans, offset = [], start
    for name, source, encoding in tensors:
        rows = source.shape[0] if source.shape else 1
        arrays = []
        for array in encoding.arrays(source.shape):
            offset = -(-offset // align) * align
            nbytes = rows * array.row_bytes
            arrays.append(
                ArrayPlan(
                    name + array.suffix, array.dtype, array.shape, offset, nbytes, array.row_bytes
                )
            )
            offset += nbytes
        tensor_plans.append(TensorPlan(name, source, encoding, tuple(arrays)))
    return tuple(tensor_plans)


def free_bytes(output: Path) -> int:
    """Bytes free on the disk that will hold `output`, whose folder need not exist yet."""
    folder = Path(os.path.abspath(output)).parent
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def worker_count() -> int:
    """Number of workers, each with one chunk: torch's number of threads (OMP_NUM_THREADS)."""
    return min(thread_count(), MAX_WORKERS)


def _format_shape(shape: tuple[int, ...]) -> str:
    """Format a shape as, for example, 3x4."""
    return "x".join(map(str, shape))
