"""The files of a plan, one after the other: chunks on all cores, what is there noted in order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path

from cgconvert.codecs.plain import Plain
from cgconvert.errors import InputError
from cgconvert.io.pipeline import ordered_results
from cgconvert.io.progress import Progress
from cgconvert.write.chunk import Faults, write_all, write_chunk
from cgconvert.write.crew import WorkerPool
from cgconvert.write.follow import StreamingHash
from cgconvert.write.journal import Journal, Place
from cgconvert.write.plan import IN_FLIGHT_BYTES, FilePlan, Item, Plan

__all__ = ["Job", "Writer"]

JOURNAL_BYTES = 256 << 20
"""So much is written before a place is noted that an interrupted run can continue from."""


@dataclass(frozen=True)
class Job:
    """What a crew does: some rows of one item of one file, written below `root`."""

    plan: Plan
    root: Path
    allow_nonfinite: bool

    def __call__(self, number: int, index: int, rows: slice) -> Faults:
        file = self.plan.files[number]
        return write_chunk(file.items[index], rows, self.root / file.path, self.allow_nonfinite)


class Writer:
    """Writes the files of a plan one after the other, from the place the journal tells.

    `crew` does `job`, `notes` is where files are synced. `hashes` has a Follower for each file,
    until the writer's context is left.
    """

    def __init__(
        self,
        job: Job,
        crew: WorkerPool,
        journal: Journal,
        notes: Executor,
        progress: Progress,
    ) -> None:
        self.job, self.crew = job, crew
        self.journal, self.begin = journal, journal.place
        self.notes, self.progress = notes, progress
        self.hashes: dict[str, StreamingHash] = {}
        self.noting: Future[None] | None = None
        self.unsaved = 0
        self.loose = False

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        for follower in self.hashes.values():
            follower.close()

    def write(self, number: int, file: FilePlan) -> None:
        path = self.job.root / file.path
        if (number + 1, 0, 0) <= self.begin:
            self.hashes[file.path] = StreamingHash(path)
            self.hashes[file.path].reached(file.size)
            self.progress.advance(file.size)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            self.hashes[file.path] = StreamingHash(path)
            if file.size:
                os.posix_fallocate(descriptor, 0, file.size)  # a full disk says so here
            write_all(descriptor, memoryview(file.header), 0)
            self.progress.advance(len(file.header))
            self._items(descriptor, number, file)
            self._close(descriptor, number, file)
        finally:
            if self.noting is not None:
                self.noting.result()
            os.close(descriptor)

    def _items(self, descriptor: int, number: int, file: FilePlan) -> None:
        behind = _begins(file)[1:]
        faults = Faults()
        chunks = ordered_results(
            lambda chunk: self.crew.submit(number, *chunk),
            self._left(number, file),
            lambda chunk: file.items[chunk[0]].chunk_bytes,
            IN_FLIGHT_BYTES,
        )
        for (index, rows), found in chunks:
            item = file.items[index]
            faults += found
            nbytes = item.bytes_of(rows)
            self.progress.advance(nbytes)
            self.unsaved += nbytes
            if not faults.broken and not faults.lost:
                self._note(descriptor, (number, index, rows.stop))
            if rows.stop == item.rows:
                self._judge(item, faults)
                faults = Faults()
            self.hashes[file.path].reached(_written(item, rows.stop, behind[index]))

    def _left(self, number: int, file: FilePlan) -> Iterator[tuple[int, slice]]:
        """Items and rows that the journal does not tell to be there."""
        for index, item in enumerate(file.items):
            for rows in item.chunks():
                if (number, index, rows.stop) <= self.begin:
                    self.progress.advance(item.bytes_of(rows))
                else:
                    yield index, rows

    def _close(self, descriptor: int, number: int, file: FilePlan) -> None:
        """A file with weights is synced and noted; behind one that is not, nothing is noted."""
        self.hashes[file.path].reached(file.size)
        if not file.items or self.loose:
            self.loose = True
            return
        if self.noting is not None:
            self.noting.result()
        self._sync(descriptor, (number + 1, 0, 0))
        self.unsaved = 0

    def _judge(self, item: Item, faults: Faults) -> None:
        """Raises InputError naming the source's tensor, and how many numbers are at fault."""
        stored = list(item.source.leaves())
        names = ", ".join(dict.fromkeys(tensor.name for tensor in stored)) or item.name
        where = f"{stored[0].path if stored else self.job.plan.source.path}: tensor {names}"
        plain = isinstance(item.encoding, Plain)
        if plain and self.job.allow_nonfinite:
            return
        advice = "; --allow-nonfinite keeps them" if plain else ""
        if faults.broken:
            raise InputError(
                f"{where}: {faults.broken} values are NaN or infinite in the source{advice}"
            )
        if faults.reason:
            raise InputError(
                f"{where}: {faults.lost} rows cannot be {item.encoding.name}: {faults.reason}"
            )
        if faults.lost:
            raise InputError(
                f"{where}: {faults.lost} values overflow {item.encoding.name}; "
                f"choose a wider type{advice}"
            )

    def _note(self, descriptor: int, place: Place) -> None:
        """Sync what is written and note it, while the next rows are worked on."""
        if self.unsaved < JOURNAL_BYTES or self.loose:
            return
        if self.noting is not None:
            if not self.noting.done():
                return
            self.noting.result()
        self.unsaved = 0
        self.noting = self.notes.submit(self._sync, descriptor, place)

    def _sync(self, descriptor: int, place: Place) -> None:
        os.fdatasync(descriptor)
        self.journal.reached(place)


def _begins(file: FilePlan) -> list[int]:
    """For each item, and for the end: the first byte of it or of any behind it in the plan."""
    begins = [file.size]
    for item in reversed(file.items):
        begins.append(min([begins[-1], *(piece.offset for piece in item.pieces)]))
    return begins[::-1]


def _written(item: Item, rows: int, rest: int) -> int:
    """All before this byte is there once so many rows of the item are, and what is before it.

    `rest` is where the items behind it begin.
    """
    open_pieces = item.pieces if rows < item.rows else ()
    return min([rest, *(piece.offset + rows * piece.row_bytes for piece in open_pieces)])
