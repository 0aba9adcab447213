"""Write the files of a plan: rows are read, encoded and put in their place by a pool of workers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path

import torch

from cgconvert.codecs.encoding import Plain
from cgconvert.errors import InputError
from cgconvert.io.parallel import WorkerPool, ordered_results
from cgconvert.io.progress import Progress
from cgconvert.write.hashing import StreamingHash
from cgconvert.write.journal import Journal, Place
from cgconvert.write.plan import IN_FLIGHT_BYTES, FilePlan, Item, Plan

__all__ = ["Faults", "Job", "Writer"]

JOURNAL_BYTES = 256 << 20
"""Bytes written between two places noted in the journal."""


@dataclass(frozen=True)
class Faults:
    """Numbers of a chunk that cannot be stored.

    `nonfinite` are NaN or infinite in the source. `unencodable` overflow a plain type, or are rows
    that a quantized type refuses for `reason`.
    """

    nonfinite: int = 0
    unencodable: int = 0
    reason: str = ""

    def __add__(self, other: Faults) -> Faults:
        return Faults(
            self.nonfinite + other.nonfinite,
            self.unencodable + other.unencodable,
            other.reason or self.reason,
        )


@dataclass(frozen=True)
class Job:
    """The work on one chunk, done by a worker: read rows, encode them, write them below `root`."""

    plan: Plan
    root: Path
    allow_nonfinite: bool

    def __call__(self, file_index: int, item_index: int, rows: slice) -> Faults:
        """Write some rows of an item into its file, which exists.

        Of rows with faults nothing may be written, or a part.
        """
        file = self.plan.files[file_index]
        item, path = file.items[item_index], self.root / file.path
        values = item.source.read(rows)
        nonfinite = _count_nonfinite(values)
        if nonfinite and not (self.allow_nonfinite and isinstance(item.encoding, Plain)):
            return Faults(nonfinite)
        try:
            arrays = item.encoding.encode(values)
        except InputError as error:
            refused = sum(not _encodes(item, row) for row in values.split(1))
            return Faults(nonfinite, refused, str(error))
        overflows = 0
        descriptor = os.open(path, os.O_WRONLY)
        try:
            for piece, array in zip(item.pieces, arrays, strict=True):
                if array is not values:
                    overflows += max(0, _count_nonfinite(array) - nonfinite)
                _write_at(descriptor, _bytes(array), piece.offset + rows.start * piece.row_bytes)
        finally:
            os.close(descriptor)
        return Faults(nonfinite, overflows)


def _write_at(descriptor: int, data: memoryview, position: int) -> None:
    """Write all of `data`: pwrite may write less than it is given."""
    while data:
        count = os.pwrite(descriptor, data, position)
        data, position = data[count:], position + count


def _encodes(item: Item, rows: torch.Tensor) -> bool:
    try:
        item.encoding.encode(rows)
    except InputError:
        return False
    return True


def _count_nonfinite(array: torch.Tensor) -> int:
    if not array.dtype.is_floating_point or not array.numel():
        return 0
    low, high = torch.aminmax(array)  # both are NaN if any is; far quicker than testing each
    if torch.isfinite(low) and torch.isfinite(high):
        return 0
    return int(array.numel() - torch.isfinite(array).sum())


def _bytes(array: torch.Tensor) -> memoryview:
    return array.contiguous().reshape(-1).view(torch.uint8).numpy().data


class Writer:
    """Writes the files of a plan one after the other, from the place the journal has reached.

    Args:
        job: What the workers do with a chunk.
        pool: The workers.
        journal: Notes what is written and synced.
        background: Where files are synced meanwhile.
        progress: Told of bytes written.

    `hashes` has a StreamingHash for each file, until the writer's context is left.
    """

    def __init__(
        self,
        job: Job,
        pool: WorkerPool,
        journal: Journal,
        background: Executor,
        progress: Progress,
    ) -> None:
        self.job, self.pool = job, pool
        self.journal, self.start = journal, journal.place
        self.background, self.progress = background, progress
        self.hashes: dict[str, StreamingHash] = {}
        self.syncing: Future[None] | None = None
        self.unsynced = 0
        """Bytes written since the last note."""
        self.unjournaled = False
        """Whether a file was written that is not synced: nothing behind it can be noted."""

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        for streaming_hash in self.hashes.values():
            streaming_hash.close()

    def write(self, index: int, file: FilePlan) -> None:
        """Write file number `index` of the plan, or what is missing of it."""
        path = self.job.root / file.path
        if (index + 1, 0, 0) <= self.start:
            self.hashes[file.path] = StreamingHash(path)
            self.hashes[file.path].reached(file.size)
            self.progress.advance(file.size)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            self.hashes[file.path] = StreamingHash(path)
            if file.size:
                os.posix_fallocate(descriptor, 0, file.size)  # a full disk fails here
            _write_at(descriptor, memoryview(file.header), 0)
            self.progress.advance(len(file.header))
            self._write_items(descriptor, index, file)
            self._complete(descriptor, index, file)
        finally:
            if self.syncing is not None:
                self.syncing.result()
            os.close(descriptor)

    def _write_items(self, descriptor: int, index: int, file: FilePlan) -> None:
        next_offset = _first_offsets(file)[1:]
        faults = Faults()
        results = ordered_results(
            lambda chunk: self.pool.submit(index, *chunk),
            self._remaining(index, file),
            lambda chunk: file.items[chunk[0]].chunk_bytes,
            IN_FLIGHT_BYTES,
        )
        for (item_index, rows), chunk_faults in results:
            item = file.items[item_index]
            faults += chunk_faults
            nbytes = item.bytes_of(rows)
            self.progress.advance(nbytes)
            self.unsynced += nbytes
            if not faults.nonfinite and not faults.unencodable:
                self._note(descriptor, (index, item_index, rows.stop))
            if rows.stop == item.rows:
                self._raise_for(item, faults)
                faults = Faults()
            complete = _complete_bytes(item, rows.stop, next_offset[item_index])
            self.hashes[file.path].reached(complete)

    def _remaining(self, index: int, file: FilePlan) -> Iterator[tuple[int, slice]]:
        """Items and rows of a file that an earlier run has not written."""
        for item_index, item in enumerate(file.items):
            for rows in item.chunks():
                if (index, item_index, rows.stop) <= self.start:
                    self.progress.advance(item.bytes_of(rows))
                else:
                    yield item_index, rows

    def _complete(self, descriptor: int, index: int, file: FilePlan) -> None:
        """Sync and note a file with weights. Smaller ones are not worth it."""
        self.hashes[file.path].reached(file.size)
        if not file.items or self.unjournaled:
            self.unjournaled = True
            return
        if self.syncing is not None:
            self.syncing.result()
        self._sync(descriptor, (index + 1, 0, 0))
        self.unsynced = 0

    def _raise_for(self, item: Item, faults: Faults) -> None:
        """Raise InputError for numbers that cannot be stored, naming the source's tensor."""
        stored = list(item.source.leaves())
        names = ", ".join(dict.fromkeys(tensor.name for tensor in stored)) or item.name
        path = stored[0].path if stored else self.job.plan.source.path
        where = f"{path}: tensor {names}"
        plain = isinstance(item.encoding, Plain)
        if plain and self.job.allow_nonfinite:
            return
        advice = "; `allow_nonfinite=True` keeps them" if plain else ""
        if faults.nonfinite:
            raise InputError(
                f"{where}: {faults.nonfinite} values are NaN or infinite in the source{advice}"
            )
        if faults.reason:
            raise InputError(
                f"{where}: {faults.unencodable} rows cannot be {item.encoding.name}: "
                f"{faults.reason}"
            )
        if faults.unencodable:
            raise InputError(
                f"{where}: {faults.unencodable} values overflow {item.encoding.name}; "
                f"choose a wider type{advice}"
            )

    def _note(self, descriptor: int, place: Place) -> None:
        """Every JOURNAL_BYTES, sync what is written and note it, in the background."""
        if self.unsynced < JOURNAL_BYTES or self.unjournaled:
            return
        if self.syncing is not None:
            if not self.syncing.done():
                return
            self.syncing.result()
        self.unsynced = 0
        self.syncing = self.background.submit(self._sync, descriptor, place)

    def _sync(self, descriptor: int, place: Place) -> None:
        os.fdatasync(descriptor)
        self.journal.reached(place)


def _first_offsets(file: FilePlan) -> list[int]:
    """For each item, and for the end: the first byte of it or of any item behind it in the plan."""
    offsets = [file.size]
    for item in reversed(file.items):
        offsets.append(min([offsets[-1], *(piece.offset for piece in item.pieces)]))
    return offsets[::-1]


def _complete_bytes(item: Item, rows: int, next_offset: int) -> int:
    """Bytes from the start of the file that are complete once `rows` of the item are written.

    All items before it are complete; `next_offset` is where those behind it begin.
    """
    open_pieces = item.pieces if rows < item.rows else ()
    return min([next_offset, *(piece.offset + rows * piece.row_bytes for piece in open_pieces)])
