"""How a long work says how far it is."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "Silent", "human_bytes"]


class Progress(Protocol):
    """A step is a named stretch of work with a known amount (bytes, checks, tokens)."""

    def step(self, label: str, total: int) -> None:
        """A new step of `total` units begins; the one before has ended."""

    def advance(self, amount: int) -> None:
        """So many units more are done."""

    def finish(self) -> None:
        """All steps have ended."""


class Silent:
    """Says nothing."""

    def step(self, label: str, total: int) -> None: ...

    def advance(self, amount: int) -> None: ...

    def finish(self) -> None: ...


def human_bytes(count: int) -> str:
    """A size as people write it: decimal units, three digits."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{count} B" if unit == "B" else f"{value:.3g} {unit}"
