"""Progress of long work, reported to whoever shows it; sizes as people write them."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "SilentProgress", "format_bytes"]


class Progress(Protocol):
    """Receives reports of progress.

    Work is divided into steps, each with a label and a known amount in a unit of its own (bytes,
    checks, tokens).
    """

    def step(self, label: str, total: int) -> None:
        """Begin a step of `total` units, and end the one before it."""

    def advance(self, amount: int) -> None:
        """Report `amount` more units of the step."""

    def finish(self) -> None:
        """End the last step."""


class SilentProgress:
    """Shows nothing."""

    def step(self, label: str, total: int) -> None: ...

    def advance(self, amount: int) -> None: ...

    def finish(self) -> None: ...


def format_bytes(count: int) -> str:
    """Format a size in decimal units and three digits: 1.23 GB."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{count} B" if unit == "B" else f"{value:.3g} {unit}"
