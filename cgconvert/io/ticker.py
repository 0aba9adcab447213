"""A function that is called again and again while this process waits or computes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

from cgconvert.io.system.forks import call_around_fork

__all__ = ["Ticker"]


class Ticker:
    """Calls a function every `seconds` from a thread, which does not live while the process forks.

    A forked process has only the thread that forked, and a copy of every lock as it was: one that
    another thread holds stays held for ever. So the thread ends before a fork and begins again
    after it, in the parent alone. An error of the function ends the calls.
    """

    def __init__(self, function: Callable[[], None], seconds: float) -> None:
        self._function, self._seconds = function, seconds
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin the calls; the first comes after `seconds`."""
        if self._thread is None:
            self._stopping = threading.Event()
            self._thread = threading.Thread(
                target=self._run, args=(self._stopping,), name="cgconvert-ticker", daemon=True
            )
            self._thread.start()
            _running.add(self)

    def stop(self) -> None:
        """End the calls; returns when the last has returned."""
        _running.discard(self)
        self.pause()

    def pause(self) -> None:
        """End the thread, and wait for that."""
        thread, self._thread = self._thread, None
        self._stopping.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self, stopping: threading.Event) -> None:
        while not stopping.wait(self._seconds):
            self._function()


_running: weakref.WeakSet[Ticker] = weakref.WeakSet()


def _pause_all() -> None:
    for ticker in list(_running):
        ticker.pause()


def _start_all() -> None:
    for ticker in list(_running):
        ticker.start()


call_around_fork(_pause_all, _start_all, _running.clear)
