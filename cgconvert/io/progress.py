"""Progress of long work, and sizes as text."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "SilentProgress", "format_bytes"]


class Progress(Protocol):
    """Receives reports of progress, to show them.

    Work is divided into steps. A step has a label and a known number of units (bytes, tokens).
    """

    def step(self, label: str, total: int) -> None:
        """Begin a step of `total` units; the step before it is complete."""

    def advance(self, amount: int) -> None:
        """Report that `amount` more units of the current step are complete."""

    def finish(self) -> None:
        """End the last step."""


class SilentProgress:
    """A Progress that shows nothing."""

    def step(self, label: str, total: int) -> None: ...

    def advance(self, amount: int) -> None: ...

    def finish(self) -> None: ...


def format_bytes(count: int) -> str:
    """Format a number of bytes in decimal units with three digits, for example 1.23 GB."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{count} B" if unit == "B" else f"{value:.3g} {unit}"
