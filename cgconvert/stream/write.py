"""One file of a plan after the other: rows are read, encoded, judged and written to their place."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from cgconvert.checkpoint.checkpoint import Checkpoint
from cgconvert.errors import InputError
from cgconvert.quant.plain import Plain
from cgconvert.stream.journal import Journal, Place
from cgconvert.stream.plan import FilePlan, Item
from cgconvert.stream.progress import Progress

__all__ = ["Writer"]

JOURNAL_BYTES = 256 << 20
"""So much is written before a place is noted that an interrupted run can continue from."""


class Writer:
    """Writes the files of a plan one after the other, from the place the journal tells."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        allow_nonfinite: bool,
        journal: Journal,
        pool: ThreadPoolExecutor,
        progress: Progress,
    ) -> None:
        self.path, self.allow_nonfinite = checkpoint.path, allow_nonfinite
        self.journal, self.begin = journal, journal.place
        self.pool, self.progress = pool, progress
        self.noting: Future[None] | None = None
        self.unsaved = 0
        self.loose = False

    def write(self, root: Path, number: int, file: FilePlan) -> None:
        if (number + 1, 0, 0) <= self.begin:
            self.progress.advance(file.size)
            return
        path = root / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            if file.size:
                os.posix_fallocate(descriptor, 0, file.size)  # a full disk says so here
            _write(descriptor, memoryview(file.header), 0)
            self.progress.advance(len(file.header))
            for index, item in enumerate(file.items):
                self._item(descriptor, (number, index), item)
            self._close(descriptor, number, file)
        finally:
            if self.noting is not None:
                self.noting.result()
            os.close(descriptor)

    def _close(self, descriptor: int, number: int, file: FilePlan) -> None:
        """A file with weights is synced and noted; behind one that is not, nothing is noted."""
        if not file.items or self.loose:
            self.loose = True
            return
        if self.noting is not None:
            self.noting.result()
        self._sync(descriptor, (number + 1, 0, 0))
        self.unsaved = 0

    def _item(self, descriptor: int, place: tuple[int, int], item: Item) -> None:
        rows = item.source.shape[0] if item.source.shape else 1
        broken = lost = 0
        reason = ""
        for start in range(0, rows, item.chunk_rows):
            stop = min(rows, start + item.chunk_rows)
            if (*place, stop) <= self.begin:
                self.progress.advance(sum(p.row_bytes for p in item.pieces) * (stop - start))
                continue
            block = item.source.read(slice(start, stop))
            nonfinite = _not_finite(block)
            broken += nonfinite
            if nonfinite and not (self.allow_nonfinite and isinstance(item.encoding, Plain)):
                continue  # to the tensor's end, for the count
            try:
                arrays = item.encoding.encode(block)
            except InputError as error:
                lost += sum(not _encodes(item, row) for row in block.split(1))
                reason = str(error)
                continue
            for piece, array in zip(item.pieces, arrays, strict=True):
                lost += max(0, _not_finite(array) - nonfinite)
                data = _bytes(array)
                _write(descriptor, data, piece.offset + start * piece.row_bytes)
                self.progress.advance(len(data))
                self.unsaved += len(data)
            if not broken and not lost:
                self._note(descriptor, (*place, stop))
        self._judge(item, broken, lost, reason)

    def _judge(self, item: Item, broken: int, lost: int, reason: str) -> None:
        """Raises InputError naming the source's tensor, and how many numbers are at fault."""
        stored = list(item.source.leaves())
        names = ", ".join(dict.fromkeys(tensor.name for tensor in stored)) or item.name
        where = f"{stored[0].path if stored else self.path}: tensor {names}"
        plain = isinstance(item.encoding, Plain)
        if plain and self.allow_nonfinite:
            return
        advice = "; --allow-nonfinite keeps them" if plain else ""
        if broken:
            raise InputError(f"{where}: {broken} values are NaN or infinite in the source{advice}")
        if reason:
            raise InputError(f"{where}: {lost} rows cannot be {item.encoding.name}: {reason}")
        if lost:
            raise InputError(
                f"{where}: {lost} values overflow {item.encoding.name}; choose a wider type{advice}"
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
        self.noting = self.pool.submit(self._sync, descriptor, place)

    def _sync(self, descriptor: int, place: Place) -> None:
        os.fdatasync(descriptor)
        self.journal.reached(place)


def _encodes(item: Item, rows: torch.Tensor) -> bool:
    try:
        item.encoding.encode(rows)
    except InputError:
        return False
    return True


def _not_finite(array: torch.Tensor) -> int:
    if not array.dtype.is_floating_point or not array.numel():
        return 0
    low, high = torch.aminmax(array)  # a NaN anywhere is both; far quicker than looking at each
    if torch.isfinite(low) and torch.isfinite(high):
        return 0
    return int(array.numel() - torch.isfinite(array).sum())


def _bytes(array: torch.Tensor) -> memoryview:
    return array.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write(descriptor: int, data: memoryview, position: int) -> None:
    while data:
        done = os.pwrite(descriptor, data, position)
        data, position = data[done:], position + done
