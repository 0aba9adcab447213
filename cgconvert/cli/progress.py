"""Progress for a person: a bar on a terminal. Elsewhere stderr is for what went wrong."""

from __future__ import annotations

import sys
from typing import Any

import click

__all__ = ["TerminalProgress"]


class TerminalProgress:
    """Writes to stderr, so that stdout stays what was asked for."""

    def __init__(self) -> None:
        self._bar: Any = None

    def step(self, label: str, total: int) -> None:
        self.finish()
        if sys.stderr.isatty():
            self._bar = click.progressbar(length=max(total, 1), label=label, file=sys.stderr)
            self._bar.__enter__()

    def advance(self, amount: int) -> None:
        if self._bar is not None:
            self._bar.update(amount)

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.render_finish()
            self._bar = None
