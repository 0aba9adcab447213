"""The standard streams as descriptors: C and Rust libraries write to them past Python's objects."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

__all__ = ["without_stderr"]

STDERR = 2


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """Let the descriptor of stderr lead nowhere; where it is closed, nothing is to be done."""
    try:
        kept = os.dup(STDERR)
    except OSError:
        yield
        return
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, STDERR)
        os.close(nowhere)
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)
