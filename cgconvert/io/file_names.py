"""Tell names that a file can have from text that cannot be one."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["is_possible"]


def is_possible(path: Path) -> bool:
    """Whether a file can have this path: it has no NUL, and every character stands for bytes.

    Bytes that are not UTF-8 are lone surrogates in Python; those from U+DC80 to U+DCFF stand for
    such bytes, others for nothing.
    """
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False
