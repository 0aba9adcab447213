"""Write the files of a plan with a pool of workers: read rows, encode them, store them in place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path

from cgconvert.codecs.encoding import FloatEncoding
from cgconvert.errors import InputError
from cgconvert.io.parallel import WorkerPool, ordered_results
from cgconvert.io.progress import Progress
from cgconvert.io.system.files import allocate, open_file, sync_descriptor, write_at
from cgconvert.lazy import torch
from cgconvert.write.hashing import StreamingHash
from cgconvert.write.journal import Journal, Position, written_bytes
from cgconvert.write.plan import IN_FLIGHT_BYTES, FilePlan, Plan, TensorPlan

__all__ = ["ChunkWriter", "PlanWriter", "UnstorableValues"]

JOURNAL_BYTES = 256 << 20
"""Bytes written between two entries of the journal."""


@dataclass(frozen=True)
class UnstorableValues:
    """How many values of a chunk, or of a tensor's chunks so far, cannot be stored.

    Attributes:
        nonfinite: Number of values that are NaN or infinite in the source.
        overflowing: Number of values that overflow a plain type.
        refused_rows: Number of rows that a quantized type cannot encode.
        reason: Why the quantized type cannot encode them.
    """

    nonfinite: int = 0
    overflowing: int = 0
    refused_rows: int = 0
    reason: str = ""

    def __add__(self, other: UnstorableValues) -> UnstorableValues:
        return UnstorableValues(
            self.nonfinite + other.nonfinite,
            self.overflowing + other.overflowing,
            self.refused_rows + other.refused_rows,
            other.reason or self.reason,
        )

    def __bool__(self) -> bool:
        return bool(self.nonfinite or self.overflowing or self.refused_rows or self.reason)


@dataclass(frozen=True)
class ChunkWriter:
    """The function that workers run: it reads, encodes and writes one chunk of a tensor's rows.

    Attributes:
        plan: The plan that the chunks belong to.
        folder: The folder to which the paths of the plan's files are relative.
        allow_nonfinite: Whether plain types may store NaN, infinities and values that overflow.
    """

    plan: Plan
    folder: Path
    allow_nonfinite: bool

    def __call__(self, file_index: int, tensor_index: int, rows: slice) -> UnstorableValues:
        """Write these rows of a tensor into its file, which must exist.

        Returns how many values cannot be stored. If there are any, the rows may be written in
        part or not at all.
        """
        file = self.plan.files[file_index]
        tensor = file.tensors[tensor_index]
        values = tensor.source.read(rows)
        nonfinite = _count_nonfinite(values)
        if nonfinite and not (self.allow_nonfinite and isinstance(tensor.encoding, FloatEncoding)):
            return UnstorableValues(nonfinite)
        try:
            arrays = tensor.encoding.encode(values)
        except InputError as error:
            refused_rows = sum(not _is_encodable(tensor, row) for row in values.split(1))
            return UnstorableValues(nonfinite, refused_rows=refused_rows, reason=str(error))
        overflowing = 0
        descriptor = open_file(self.folder / file.path, write=True)
        try:
            for array_plan, array in zip(tensor.arrays, arrays, strict=True):
                if array is not values:
                    overflowing += max(0, _count_nonfinite(array) - nonfinite)
                offset = array_plan.offset + rows.start * array_plan.row_bytes
                write_at(descriptor, _as_bytes(array), offset)
        finally:
            os.close(descriptor)
        return UnstorableValues(nonfinite, overflowing)


def _is_encodable(tensor: TensorPlan, rows: torch.Tensor) -> bool:
    """Whether the tensor's encoding accepts these rows."""
    try:
        tensor.encoding.encode(rows)
    except InputError:
        return False
    return True


def _count_nonfinite(array: torch.Tensor) -> int:
    """Count the values that are NaN or infinite."""
    if not array.dtype.is_floating_point or not array.numel():
        return 0
    # Both are NaN if any value is. This is far quicker than testing every value.
    low, high = torch.aminmax(array)
    if torch.isfinite(low) and torch.isfinite(high):
        return 0
    return int(array.numel() - torch.isfinite(array).sum())


def _as_bytes(array: torch.Tensor) -> memoryview:
    """The tensor's values as bytes, in row-major order."""
    return array.contiguous().reshape(-1).view(torch.uint8).numpy().data


class PlanWriter:
    """Writes the files of a plan one after the other, from the journal's position on.

    Args:
        write_chunk: The function that the workers run.
        pool: The workers.
        journal: Records which rows are written and synced.
        background: Runs the syncing while the next rows are written.
        progress: Receives the number of bytes written.

    `hashes` has a StreamingHash for each file, by its path in the plan, as long as the context is
    open.
    """

    def __init__(
        self,
        write_chunk: ChunkWriter,
        pool: WorkerPool,
        journal: Journal,
        background: Executor,
        progress: Progress,
    ) -> None:
        self.write_chunk, self.pool = write_chunk, pool
        self.journal, self.start = journal, journal.position
        self.background, self.progress = background, progress
        self.hashes: dict[str, StreamingHash] = {}
        self.syncing: Future[None] | None = None
        self.unrecorded_bytes = 0
        """Bytes written since the journal's last entry."""
        self.has_unsynced_file = False
        """Whether a complete file was not synced. The journal then cannot record any later
        position, because a position says that everything before it is synced."""

    def __enter__(self) -> PlanWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for streaming_hash in self.hashes.values():
            streaming_hash.close()

    def write(self, file_index: int) -> None:
        """Write a file of the plan, or the rows that the interrupted run has not written."""
        file = self.write_chunk.plan.files[file_index]
        path = self.write_chunk.folder / file.path
        if (file_index + 1, 0, 0) <= self.start:
            self.hashes[file.path] = StreamingHash(path)
            self.hashes[file.path].allow(file.size)
            self.progress.advance(file.size)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = open_file(path, create=True)
        try:
            self.hashes[file.path] = StreamingHash(path)
            allocate(descriptor, file.size, path)  # a full disk fails here, at once
            write_at(descriptor, memoryview(file.header), 0)
            self.progress.advance(len(file.header))
            self._write_tensors(descriptor, file_index, file)
            self._complete(descriptor, file_index, file)
        finally:
            if self.syncing is not None:
                self.syncing.result()
            os.close(descriptor)

    def _write_tensors(self, descriptor: int, file_index: int, file: FilePlan) -> None:
        """Have the workers write all chunks, and follow with hash and journal in their order."""
        next_offsets = _first_offsets(file)[1:]
        unstorable = UnstorableValues()
        results = ordered_results(
            lambda chunk: self.pool.submit(file_index, *chunk),
            self._remaining_chunks(file_index, file),
            lambda chunk: file.tensors[chunk[0]].chunk_bytes,
            IN_FLIGHT_BYTES,
        )
        for (tensor_index, rows), unstorable_in_chunk in results:
            tensor = file.tensors[tensor_index]
            unstorable += unstorable_in_chunk
            nbytes = tensor.stored_bytes(rows)
            self.progress.advance(nbytes)
            self.unrecorded_bytes += nbytes
            if not unstorable:
                self._record(descriptor, (file_index, tensor_index, rows.stop))
            if rows.stop == tensor.rows:
                # At a tensor's end, so that the error tells the number of all its values.
                self._raise_if_unstorable(tensor, unstorable)
                unstorable = UnstorableValues()
            complete = _complete_bytes(tensor, rows.stop, next_offsets[tensor_index])
            self.hashes[file.path].allow(complete)

    def _remaining_chunks(self, file_index: int, file: FilePlan) -> Iterator[tuple[int, slice]]:
        """Yield tensor index and rows of each chunk that an interrupted run has not written."""
        for tensor_index, tensor in enumerate(file.tensors):
            for rows in tensor.chunks():
                if (file_index, tensor_index, rows.stop) <= self.start:
                    self.progress.advance(tensor.stored_bytes(rows))
                else:
                    yield tensor_index, rows

    def _complete(self, descriptor: int, file_index: int, file: FilePlan) -> None:
        """Sync a complete file with tensors and record it; files without any are not worth it."""
        self.hashes[file.path].allow(file.size)
        if not file.tensors or self.has_unsynced_file:
            self.has_unsynced_file = True
            return
        if self.syncing is not None:
            self.syncing.result()
        self._sync(descriptor, (file_index + 1, 0, 0))
        self.unrecorded_bytes = 0

    def _raise_if_unstorable(self, tensor: TensorPlan, unstorable: UnstorableValues) -> None:
        """Raise InputError for values that cannot be stored; it names the source's tensors.

        They are several where one is computed of others, as with an adapter.
        """
        stored: dict[Path, dict[str, None]] = {}
        for leaf in tensor.source.leaves():
            stored.setdefault(leaf.path, {})[leaf.name] = None
        if not stored:
            stored = {self.write_chunk.plan.source.path: {tensor.name: None}}
        where = "; ".join(f"{path}: tensor {', '.join(names)}" for path, names in stored.items())
        is_float = isinstance(tensor.encoding, FloatEncoding)
        if is_float and self.write_chunk.allow_nonfinite:
            return
        advice = "; `allow_nonfinite=True` keeps them" if is_float else ""
        if unstorable.nonfinite:
            raise InputError(
                f"{where}: {unstorable.nonfinite} values are NaN or infinite in the source{advice}"
            )
        if unstorable.reason:
            raise InputError(
                f"{where}: {unstorable.refused_rows} rows cannot be {tensor.encoding.name}: "
                f"{unstorable.reason}"
            )
        if unstorable.overflowing:
            raise InputError(
                f"{where}: {unstorable.overflowing} values overflow {tensor.encoding.name}; "
                f"choose a wider type{advice}"
            )

    def _record(self, descriptor: int, position: Position) -> None:
        """After every JOURNAL_BYTES, sync the file and record `position`, in the background."""
        if self.unrecorded_bytes < JOURNAL_BYTES or self.has_unsynced_file:
            return
        if self.syncing is not None:
            if not self.syncing.done():
                return
            self.syncing.result()
        self.unrecorded_bytes = 0
        self.syncing = self.background.submit(self._sync, descriptor, position)

    def _sync(self, descriptor: int, position: Position) -> None:
        """Sync the file, then record the position; runs in the background."""
        sync_descriptor(descriptor)
        self.journal.record(position, written_bytes(self.write_chunk.plan, position))


def _first_offsets(file: FilePlan) -> list[int]:
    """For each tensor, the lowest offset of its arrays and those of all later tensors.

    The last entry, behind those of the tensors, is the size of the file.
    """
    offsets = [file.size]
    for tensor in reversed(file.tensors):
        offsets.append(min([offsets[-1], *(array.offset for array in tensor.arrays)]))
    return offsets[::-1]


def _complete_bytes(tensor: TensorPlan, rows: int, next_offset: int) -> int:
    """Number of leading bytes of the file that are final once `rows` of the tensor are written.

    All earlier tensors are written by then; arrays of later tensors begin at `next_offset`.
    """
    incomplete = tensor.arrays if rows < tensor.rows else ()
    return min([next_offset, *(array.offset + rows * array.row_bytes for array in incomplete)])
