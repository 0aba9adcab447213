"""Moments that an interruption has to wait for."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["NUMBERS", "uninterrupted"]

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What interrupts a run."""


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals that Python answers are answered at the end: nothing is half made, or half removed.

    Their handlers are held back, not the signals: those may come to any thread, and Python answers
    in the main one.
    """
    came: list[int] = []

    def later(number: int, frame: FrameType | None) -> None:
        came.append(number)

    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {n: h for n in NUMBERS if callable(h := signal.getsignal(n))}
    try:
        for number in handlers:
            signal.signal(number, later)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
