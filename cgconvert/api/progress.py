"""A progress bar in a terminal or a notebook; silence elsewhere."""

from __future__ import annotations

import sys
import threading
from typing import Any, Literal

from cgconvert.io.progress import Progress, SilentProgress

__all__ = ["ProgressBar", "ProgressOption", "progress_for"]

ProgressOption = Progress | Literal["auto"] | bool | None
"""What a function of the API takes as `progress`."""

BAR = "{desc}  {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
"""Without amounts: a unit may be bytes, layers or tokens."""


class ProgressBar:
    """One bar a step, on stderr: stdout stays free for what was asked for.

    tqdm's automatic class draws it, which uses a widget in a notebook.
    """

    def __init__(self) -> None:
        self._bar: Any = None

    def step(self, label: str, total: int) -> None:
        """Begin a bar of `total` units; the one before is complete."""
        from tqdm.auto import tqdm

        self.finish()
        # Worker processes are forked while the bar is drawn. tqdm's monitor thread and its
        # semaphore shared by processes are switched off: a fork could copy them in a held state.
        tqdm.monitor_interval = 0
        tqdm.set_lock(threading.RLock())
        self._bar = tqdm(total=max(total, 1), desc=label, bar_format=BAR, file=sys.stderr)

    def advance(self, amount: int) -> None:
        """Show that `amount` more units are complete."""
        if self._bar is not None:
            self._bar.update(amount)

    def finish(self) -> None:
        """End the last bar; it stays visible."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def progress_for(progress: ProgressOption) -> Progress:
    """Return the object that reports progress.

    None and False are silent, True draws a bar, and "auto" draws one in a terminal or a notebook.
    """
    if progress is None or progress is False:
        return SilentProgress()
    if progress is True:
        return ProgressBar()
    if progress == "auto":
        return ProgressBar() if sys.stderr.isatty() or _in_notebook() else SilentProgress()
    return progress


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__name__ == "ZMQInteractiveShell"
