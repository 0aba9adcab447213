"""Progress of long work, and sizes and durations as text."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Protocol, runtime_checkable

__all__ = [
    "Amount",
    "CountsSteps",
    "LaterSteps",
    "Progress",
    "SilentProgress",
    "expect_steps",
    "format_bytes",
    "format_duration",
    "progress_of_reading",
    "shown_while_reading",
]


class Progress(Protocol):
    """Receives reports of progress, to show them.

    Work is divided into steps. A step has a label and a known number of units; where it is known
    what they are, the number is an `Amount`. An object may also have the method of `CountsSteps`.
    """

    def step(self, label: str, total: int) -> None:
        """Begin a step of `total` units; the step before it is complete."""

    def advance(self, amount: int) -> None:
        """Report that `amount` more units of the current step are complete."""

    def finish(self) -> None:
        """End the last step."""


@runtime_checkable
class CountsSteps(Protocol):
    """What a Progress has that shows how many steps there are, as in "step 3 of 8"."""

    def expect(self, steps: int) -> None:
        """Say that `steps` more steps follow; it replaces what was said before."""


class Amount(int):
    """A number of units that says what they are: "bytes", "layers", "tokens"."""

    unit: str

    def __new__(cls, count: int, unit: str) -> Amount:
        amount = super().__new__(cls, count)
        amount.unit = unit
        return amount

    def __getnewargs__(self) -> tuple[int, str]:  # type: ignore[override]
        return int(self), self.unit


class SilentProgress:
    """A Progress that shows nothing."""

    def step(self, label: str, total: int) -> None: ...

    def advance(self, amount: int) -> None: ...

    def finish(self) -> None: ...


def expect_steps(progress: Progress, steps: int) -> None:
    """Say that `steps` more steps follow, to a progress that counts them.

    Work that finds steps complete already says so with a smaller number.
    """
    if isinstance(progress, CountsSteps):
        progress.expect(steps)


_reading: ContextVar[Progress] = ContextVar("progress of reading")


def progress_of_reading() -> Progress:
    """Return the progress that shows what a source takes: downloads, unpacking, measuring."""
    return _reading.get(None) or SilentProgress()


@contextlib.contextmanager
def shown_while_reading(progress: Progress) -> Iterator[None]:
    """Let `progress` show what sources take that are read in the block.

    Its last step is ended, if there was one: most sources take none.
    """
    steps = _ReadingSteps(progress)
    token = _reading.set(steps)
    try:
        yield
    finally:
        _reading.reset(token)
        if steps.has_begun:
            progress.finish()


class LaterSteps:
    """A Progress of a part of the work, after which `later` more steps follow."""

    def __init__(self, progress: Progress, later: int) -> None:
        self._progress, self._later = progress, later

    def expect(self, steps: int) -> None:
        """Say that `steps` more steps of this part follow."""
        expect_steps(self._progress, steps + self._later)

    def step(self, label: str, total: int) -> None:
        """See Progress."""
        self._progress.step(label, total)

    def advance(self, amount: int) -> None:
        """See Progress."""
        self._progress.advance(amount)

    def finish(self) -> None:
        """End the last step of this part: steps that were expected and not begun do not come."""
        self.expect(0)
        self._progress.finish()


class _ReadingSteps(LaterSteps):
    """A Progress that knows whether a step has begun."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(progress, 0)
        self.has_begun = False

    def step(self, label: str, total: int) -> None:
        self.has_begun = True
        super().step(label, total)


def format_bytes(count: float, *, round_up: bool = False) -> str:
    """Format a number of bytes in decimal units with three digits, for example 1.23 GB.

    With `round_up` the text never means less than the number: it can be given as a limit.
    """
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    if round_up and unit != "B":
        digits = 2 - math.floor(math.log10(value))
        value = math.ceil(round(value * 10**digits, 6)) / 10**digits
    return f"{count:.0f} B" if unit == "B" else f"{value:.3g} {unit}"


def format_duration(seconds: float) -> str:
    """Write a duration as people say it, no more precise than it is worth: 40 s, 12 min, 2.3 h."""
    if seconds < 10:
        return f"{max(1, round(seconds))} s"
    if seconds < 57.5:
        return f"{round(seconds / 5) * 5} s"
    minutes = seconds / 60
    if minutes < 90:
        return f"{max(1, round(minutes))} min"
    hours = minutes / 60
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.0f} days"
