"""One chunk of one tensor: its rows are read, looked at, encoded and written to their place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from cgconvert.codecs.plain import Plain
from cgconvert.errors import InputError
from cgconvert.write.plan import Item

__all__ = ["Faults", "write_all", "write_chunk"]


@dataclass(frozen=True)
class Faults:
    """What of a chunk cannot be stored: numbers that are NaN or infinite in the source, numbers
    that overflow a plain type or rows that a quantized type refuses, and its reason."""

    broken: int = 0
    lost: int = 0
    reason: str = ""

    def __add__(self, other: Faults) -> Faults:
        return Faults(
            self.broken + other.broken, self.lost + other.lost, other.reason or self.reason
        )


def write_chunk(item: Item, rows: slice, path: Path, allow_nonfinite: bool) -> Faults:
    """Into the file at `path`, which is there. With faults nothing may be written, or a part."""
    block = item.source.read(rows)
    broken = _not_finite(block)
    if broken and not (allow_nonfinite and isinstance(item.encoding, Plain)):
        return Faults(broken)
    try:
        arrays = item.encoding.encode(block)
    except InputError as error:
        return Faults(broken, sum(not _encodes(item, r) for r in block.split(1)), str(error))
    lost = 0
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for piece, array in zip(item.pieces, arrays, strict=True):
            if array is not block:
                lost += max(0, _not_finite(array) - broken)
            place = piece.offset + rows.start * piece.row_bytes
            write_all(descriptor, _bytes(array), place)
    finally:
        os.close(descriptor)
    return Faults(broken, lost)


def write_all(descriptor: int, data: memoryview, position: int) -> None:
    """pwrite to the end."""
    while data:
        done = os.pwrite(descriptor, data, position)
        data, position = data[done:], position + done


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
