"""Signals that interrupt a run, and the sections of code that they have to wait for."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["INTERRUPTS", "uninterrupted"]

INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay interrupts to the end of the block: nothing in it is half made or half removed.

    Python's handlers are held back, not the signals themselves: the kernel may deliver those to any
    thread, while Python runs handlers in the main thread only. Outside that thread nothing is
    delayed. Handlers that are no Python functions (ignored, default) stay as they are.
    """
    received: list[int] = []

    def postpone(number: int, frame: FrameType | None) -> None:
        received.append(number)

    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {n: h for n in INTERRUPTS if callable(h := signal.getsignal(n))}
    try:
        for number in handlers:
            signal.signal(number, postpone)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])
