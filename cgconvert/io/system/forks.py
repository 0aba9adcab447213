"""Calls around every fork of this process, on systems that fork."""

from __future__ import annotations

import os
from collections.abc import Callable

__all__ = ["call_around_fork"]


def call_around_fork(
    before: Callable[[], None],
    after_in_parent: Callable[[], None],
    after_in_child: Callable[[], None],
) -> None:
    """Have functions called before each fork of this process, and after it in both processes."""
    if hasattr(os, "register_at_fork"):  # Windows has none, and does not fork
        os.register_at_fork(
            before=before, after_in_parent=after_in_parent, after_in_child=after_in_child
        )
