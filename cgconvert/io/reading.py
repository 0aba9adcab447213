"""Open and read what a command needs before its work begins: regular files, within one budget.

Headers, configurations, tokenizers and texts come from strangers. So their files are opened here
and nowhere else, their sizes are known before their bytes are read, and what they declare is
counted before it is parsed. The counts of all files that one command reads make one budget: many
files of the largest size, or one file with many small parts, cost no more than one large file.

Weights are opened here too. They are read piece by piece while the work goes on, and only their
headers count.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from io import DEFAULT_BUFFER_SIZE, BufferedReader, FileIO
from pathlib import Path
from typing import Literal

from cgconvert.errors import InputError
from cgconvert.io.followed_links import check_links
from cgconvert.io.progress import format_bytes
from cgconvert.io.system.regular_files import has_holes, name_of, size_of
from cgconvert.io.system.regular_files import open_regular as open_descriptor

__all__ = [
    "MAX_FILE_BYTES",
    "Budget",
    "Kind",
    "open_regular",
    "open_unbuffered",
    "open_whole",
    "read_bytes",
    "read_head",
    "spend",
    "timed_reading",
    "within_budget",
]

MAX_FILE_BYTES = 48 << 20
"""The largest file that is read as a whole. The tokenizer.json of 200,000 tokens and 440,000 merges
has 28 MB."""


Kind = Literal["bytes", "values", "parts"]
"""What a budget counts."""


@dataclass
class Budget:
    """What one command may read before the work begins; `spend` takes from it.

    Reading the same part of a file again costs no bytes, values or parts, but it costs time.

    Attributes:
        bytes: Bytes of small files and of headers.
        values: Values in JSON, strings and numbers in metadata. 200,000 tokens and 440,000 merges
            are 1.8 million values in a tokenizer.json, and `verify` reads two.
        parts: Tensors, members of archives, nodes of graphs, files: what takes microseconds each.
        seconds: CPU time of this thread. It is for what the other limits do not foresee.
    """

    bytes: int = 160 << 20
    values: int = 4 << 20
    parts: int = 1 << 18
    seconds: float = 10.0
    _spent: dict[tuple[str, str], int] = field(default_factory=dict, repr=False)
    _depth: int = field(default=0, repr=False)
    _began: float = field(default=0.0, repr=False)

    def spend(self, where: object, kind: Kind, count: int) -> None:
        """Take `count` bytes, values or parts. Raises InputError if so many are not left."""
        key = (str(where), kind)
        more = count - self._spent.get(key, 0)
        if more <= 0:
            return
        left = getattr(self, kind)
        if more > left:
            amount = format_bytes(count) if kind == "bytes" else f"{count:,} {kind}"
            raise InputError(
                f"{where}: refused: it has {amount} to read before the work begins, more than any "
                "model needs"
            )
        self._spent[key] = count
        setattr(self, kind, left - more)

    def check_time(self, where: object) -> None:
        """Raise InputError if reading takes longer than it may."""
        if self._depth and time.thread_time() - self._began > self.seconds:
            raise InputError(f"{where}: refused: it takes too long to read; no model's files do")

    @contextmanager
    def timed(self, where: object) -> Iterator[None]:
        """Take the time of the block, once if blocks are nested."""
        if not self._depth:
            self._began = time.thread_time()
        self._depth += 1
        try:
            yield
            self.check_time(where)
        finally:
            self._depth -= 1
            if not self._depth:
                self.seconds -= time.thread_time() - self._began


_budget: ContextVar[Budget | None] = ContextVar("budget of reading", default=None)


@contextmanager
def within_budget() -> Iterator[None]:
    """Let all reading in the block share one budget: that of the outer block, if there is one."""
    if _budget.get() is not None:
        yield
        return
    token = _budget.set(Budget())
    try:
        yield
    finally:
        _budget.reset(token)


@contextmanager
def timed_reading(where: object) -> Iterator[Budget]:
    """Take the time of the block from the budget, and yield the budget; `where` names the file.

    Outside of `within_budget` the block has a budget of its own. Raises InputError at the end of
    the block, and in `spend`, if there is no time left.
    """
    with within_budget():
        budget = _budget.get()
        assert budget is not None
        with budget.timed(where):
            yield budget


def spend(where: object, kind: Kind, count: int) -> None:
    """Take from the budget what a file, or a part of it, holds according to its size or header.

    Outside of `within_budget` and `timed_reading` each call has a budget of its own.

    Raises InputError, which begins with `where`, if the budget is used up.
    """
    budget = _budget.get() or Budget()
    budget.spend(where, kind, count)
    budget.check_time(where)


def open_regular(path: Path, purpose: str = "") -> BufferedReader:
    """Open a regular file to read bytes of it.

    Args:
        path: The file, or a link to it.
        purpose: What it is read as, such as " as a text", for the error.

    Raises:
        InputError: It is not there, cannot be opened, is no regular file on a disk, or is reached
            by a link that is not followed (io/followed_links.py).
    """
    return BufferedReader(open_unbuffered(path, purpose), DEFAULT_BUFFER_SIZE)


def open_unbuffered(path: Path, purpose: str = "") -> FileIO:
    """Open a regular file for large reads; see `open_regular`."""
    try:
        check_links(path)
        file = FileIO(open_descriptor(path), "rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read{purpose}: {error.strerror}") from error
    except ValueError as error:  # NUL or a lone surrogate in the name
        raise InputError(f"{path}: cannot be read{purpose}: no file has such a name") from error
    try:
        check_links(path, name_of(file.fileno()))  # a link may have been put there meanwhile
    except BaseException:
        file.close()
        raise
    return file


def open_whole(path: Path) -> FileIO:
    """Open a regular file to read all of it, however large, as for its hash.

    Raises InputError as `open_regular` does, and for a file that is one hole: such a file takes no
    space on the disk, and hours to read.
    """
    file = open_unbuffered(path)
    if has_holes(file.fileno()):
        size = size_of(file.fileno())
        file.close()
        raise InputError(
            f"{path}: refused: nearly all of its {format_bytes(size)} are a hole, not data; fetch "
            "it again"
        )
    return file


def read_bytes(
    path: Path, max_bytes: int = MAX_FILE_BYTES, purpose: str = "", *, kind: str = ""
) -> bytes:
    """Read a whole regular file.

    Args:
        path: The file.
        max_bytes: The largest size that is read.
        purpose: See `open_regular`.
        kind: What a file of this name is, for the error about its size.

    Raises:
        InputError: It cannot be read, is no regular file, or is too large.
    """
    with open_regular(path, purpose) as file:
        size = size_of(file.fileno())
        if size > max_bytes:
            raise InputError(
                f"{path}: {format_bytes(size)}, too large for "
                f"{kind or 'any such file of a checkpoint'}"
            )
        spend(path, "bytes", size)
        try:
            data = file.read(max_bytes + 1)
        except OSError as error:
            raise InputError(f"{path}: cannot be read{purpose}: {error.strerror}") from error
        if len(data) > max_bytes:
            raise InputError(f"{path}: became longer while it was read")
        return data


def read_head(path: Path, count: int) -> bytes:
    """Read the first `count` bytes of a regular file, or all if it has fewer.

    Raises InputError as `open_regular` does.
    """
    with open_unbuffered(path) as file:
        try:
            return file.read(count) or b""
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
