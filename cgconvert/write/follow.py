"""SHA-256 of a file while it is being written."""

from __future__ import annotations

import errno
import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

__all__ = ["StreamingHash"]

BLOCK = 1 << 20
"""Stays in a core's cache between the copy out of the page cache and the hash."""

STEP = 8 << 20


class StreamingHash:
    """Hashes on a thread of its own what is there, close behind the one who writes.

    The bytes come out of the file, where the kernel still has them in memory: so nothing has to be
    kept for the hash, pieces may be written in any order, and what an interrupted run has left
    counts as what it is.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._digest, self._block = hashlib.sha256(), bytearray(BLOCK)
        self._thread = ThreadPoolExecutor(1)
        self._steps: list[Future[None]] = []
        self._given = 0
        self._stopped = False

    def reached(self, position: int) -> None:
        """Every byte before `position` is in the file, and stays as it is."""
        if position - self._given >= STEP:
            self._give(position)

    def hexdigest(self, size: int) -> str:
        """Of all `size` bytes, which are there now; waits for what is left of them."""
        self._give(size)
        for step in self._steps:
            step.result()
        return self._digest.hexdigest()

    def close(self) -> None:
        """Nothing more is hashed when this returns."""
        self._stopped = True
        self._thread.shutdown(cancel_futures=True)
        os.close(self._descriptor)

    def _give(self, position: int) -> None:
        self._steps.append(self._thread.submit(self._hash, self._given, position))
        self._given = position

    def _hash(self, position: int, stop: int) -> None:
        view = memoryview(self._block)
        while position < stop and not self._stopped:
            count = os.preadv(self._descriptor, [view[: stop - position]], position)
            if not count:
                raise OSError(errno.EIO, "a file ended while it was written")
            self._digest.update(view[:count])
            position += count
