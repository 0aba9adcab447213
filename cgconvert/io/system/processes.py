"""Worker processes: forked on Linux, spawned on other systems.

A forked process has all that this one has, at once. On macOS forking is not safe, because system
libraries start threads, and Windows cannot fork. A spawned process is a new Python that imports
torch anew, which takes more than a second of a core and 200 MB.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import context, parent_process
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cgconvert.io.system.signals import blocked_interrupts

__all__ = ["MAX_PROCESSES", "can_fork", "end_with_parent", "end_with_pipe", "worker_context"]

MAX_PROCESSES = 61
"""Windows waits for at most so many processes at once."""


def can_fork() -> bool:
    """Whether workers can be forked."""
    return sys.platform == "linux" and hasattr(os, "fork")


def worker_context() -> context.BaseContext:
    """Return multiprocessing's context for workers: it makes processes that `terminate` ends.

    SIGTERM, its usual means, is blocked or ignored in workers.
    """
    return _ForkContext() if can_fork() else _SpawnContext()


def end_with_pipe(read_end: int) -> None:
    """End this process when all write ends of a pipe are closed."""

    def wait() -> None:
        os.read(read_end, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def end_with_parent() -> None:
    """End this spawned process when its parent ends, in whatever way."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if TYPE_CHECKING or hasattr(context, "ForkProcess"):

    class _ForkedWorker(context.ForkProcess):
        def terminate(self) -> None:
            self.kill()

    class _ForkContext(context.ForkContext):
        Process = _ForkedWorker


class _SpawnedWorker(context.SpawnProcess):
    def terminate(self) -> None:
        self.kill()

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802  # multiprocessing's own name
        if os.name == "posix":
            # It unblocks signals when it starts, so it starts before they are blocked.
            from multiprocessing import resource_tracker

            resource_tracker.ensure_running()
        with blocked_interrupts(), _without_main_module():
            return context.SpawnProcess._Popen(process_obj)


class _SpawnContext(context.SpawnContext):
    Process = _SpawnedWorker


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Hide the `__main__` module, so that a process that is spawned now does not import it.

    multiprocessing imports the main module in every process that it spawns. A user's script without
    the guard `if __name__ == "__main__":` would convert once more in each of them.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
