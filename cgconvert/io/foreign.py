"""Calls of native libraries in this process: what they print and how they break off.

A library in Rust that meets what it does not expect writes "thread panicked" and a stack to stderr,
past Python's `sys.stderr`, and raises an exception that is no `Exception` (PyO3, PanicException).
Libraries in C++ write their own lines. A command prints one line for an error, and nothing else.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from cgconvert.errors import InputError
from cgconvert.io.system.streams import without_stderr

__all__ = ["foreign_call"]

PANIC = "PanicException"

_lock = threading.RLock()
"""Held while stderr leads elsewhere, so that two threads do not restore each other's."""


@contextlib.contextmanager
def foreign_call(where: object, fault: str) -> Iterator[None]:
    """Let what a library writes to stderr go nowhere for a short block, and catch its panics.

    Args:
        where: The file, or what it is about, with which the error begins.
        fault: What it means if the library breaks off, such as "no such tokenizer can be run".

    Raises:
        InputError: The library has panicked.
    """
    with _lock, without_stderr():
        try:
            yield
        except BaseException as error:
            if type(error).__name__ != PANIC:
                raise
            raise InputError(f"{where}: {fault}") from None
