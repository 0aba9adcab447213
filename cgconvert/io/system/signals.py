"""The signals that interrupt a run on this system."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["INTERRUPTS", "blocked_interrupts", "ignore_interrupts"]

INTERRUPTS = tuple(
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    if hasattr(signal, name)
)
"""The signals that ask a run to end. Windows has no SIGHUP; its SIGBREAK comes with Ctrl-Break and
when the console's window is closed."""


@contextmanager
def blocked_interrupts() -> Iterator[None]:
    """Block interrupts in this thread, and in processes that it starts; nothing on Windows."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    earlier_mask = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier_mask)


def ignore_interrupts() -> None:
    """Ignore interrupts in this process from now on; workers do, because their parent ends them."""
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
