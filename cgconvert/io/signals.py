"""Signals that interrupt a run, and a way to delay them while something is made or removed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cgconvert.io.system.signals import INTERRUPTS

__all__ = ["uninterrupted"]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay interrupts until the block ends, so that nothing in it is half made or half removed.

    Python's handlers are delayed, not the signals, because the kernel may deliver a signal to any
    thread, but Python runs handlers in the main thread only. In other threads nothing is delayed.
    Signals that are ignored or have the system's default action keep it.
    """
    received: list[int] = []

    def postpone(number: int, frame: FrameType | None) -> None:
        received.append(number)

    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {
            number: handler
            for number in INTERRUPTS
            if callable(handler := signal.getsignal(number))
        }
    try:
        for number in handlers:
            signal.signal(number, postpone)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:  # one is enough: its handler ends the run
            signal.raise_signal(received[0])
