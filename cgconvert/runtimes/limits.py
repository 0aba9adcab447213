"""How much memory and time a process of a runtime may take."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cgconvert.errors import UsageError
from cgconvert.io.system.memory import available_memory

__all__ = ["MEMORY_VARIABLE", "SECONDS_VARIABLE", "Limits"]

MEMORY_VARIABLE, SECONDS_VARIABLE = "CGCONVERT_RUNTIME_MEMORY", "CGCONVERT_RUNTIME_SECONDS"
RESERVED_SHARE, RESERVED_BYTES = 1 / 16, 256 << 20
"""What is left of the available memory to all other processes: a share of it, and so much more."""

LEAST_BYTES = 512 << 20
"""What a runtime may take at least, however little is available."""

BASE_SECONDS, MOST_SECONDS = 120.0, 1e6
"""The time of a call on a small artefact, and the longest that a wait on a pipe can take."""

READ_RATE, COMPUTE_RATE = 10e6, 100e6
"""Bytes of an artefact that the slowest machine loads in a second, and passes over for a token: a
hundredth of what two cores of 2020 do."""

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class Limits:
    """Limits of a runtime on one artefact.

    Attributes:
        max_bytes: The memory of its process.
        artefact_bytes: The size of the artefact, on which the time depends.
        fixed_seconds: The time of every call that the user has set; None for one that depends on
            the artefact's size.
    """

    max_bytes: int
    artefact_bytes: int
    fixed_seconds: float | None

    @classmethod
    def of(cls, artefact: Path) -> Limits:
        """The limits for an artefact, from the memory available now and the user's variables.

        Raises UsageError if a variable has no such value.
        """
        available = available_memory()
        default = int(available * (1 - RESERVED_SHARE)) - RESERVED_BYTES
        memory, seconds = os.environ.get(MEMORY_VARIABLE), os.environ.get(SECONDS_VARIABLE)
        return cls(
            _bytes(memory) if memory else max(LEAST_BYTES, default),
            _size(artefact),
            _seconds(seconds) if seconds else None,
        )

    @property
    def opening_seconds(self) -> float:
        """How long opening may take."""
        return self.fixed_seconds or _bounded(self.artefact_bytes / READ_RATE)

    def seconds(self, tokens: int) -> float:
        """How long a call may take that computes so many tokens."""
        return self.fixed_seconds or _bounded(tokens * self.artefact_bytes / COMPUTE_RATE)


def _bounded(more: float) -> float:
    """Add to the base, up to the most: a folder may hold a sparse file of terabytes."""
    return min(BASE_SECONDS + more, MOST_SECONDS)


def _size(artefact: Path) -> int:
    """The bytes of a file, or of all files of a folder and of those below it."""
    paths = [artefact] if artefact.is_file() else artefact.rglob("*")
    return sum(path.stat().st_size for path in paths if path.is_file())


def _bytes(text: str) -> int:
    """Read a size such as 12GB, 800M or a number of bytes."""
    digits = text.strip().upper().removesuffix("B")
    unit = digits[-1:] if digits[-1:] in UNITS else ""
    number = digits.removesuffix(unit).strip()
    if not (number.isascii() and number.isdecimal() and 0 < len(number) < 20 and int(number)):
        raise UsageError(f"{MEMORY_VARIABLE} is {text!r}; give a size, such as 12GB")
    return int(number) * UNITS[unit]


def _seconds(text: str) -> float:
    """Read a number of seconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MOST_SECONDS:
        raise UsageError(f"{SECONDS_VARIABLE} is {text!r}; give seconds, such as 600")
    return seconds
