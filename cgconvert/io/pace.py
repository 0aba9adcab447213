"""The pace of a step: how many units a second, and how long the units that are left will take."""

from __future__ import annotations

import math
from collections import deque

from cgconvert.io.progress import format_bytes, format_duration

__all__ = ["Pace", "format_rate", "format_time_left"]

SETTLING_SECONDS = 0.5
"""Units that are reported this early were complete already, or came after a wait; they say nothing
about the pace."""

FIRST_ESTIMATE_SECONDS = 4.0
FIRST_ESTIMATE_SHARE = 0.02
"""Time and share of the units from which on an estimate is worth something."""

WINDOW_SECONDS = 30.0
WINDOW_SHARE = 0.25
"""The pace is that of the last seconds, or of the last share of the step where that is longer."""

SMOOTHING_SECONDS = 5.0
SMOOTHING_SHARE = 0.2
"""Time, or share of the time left where that is shorter, in which the time left that is shown
follows a new estimate: near the end an estimate from a slow beginning is soon forgotten."""

MERGED_SECONDS = 0.05
"""Reports that follow each other more closely count as one."""


class Pace:
    """The pace of a step of `total` units that began at the time `start`, in seconds.

    All methods take the present time; `advance` is told of units as they are complete.
    """

    def __init__(self, total: int, start: float) -> None:
        self.total, self.complete, self.start = total, 0, start
        self._reports: deque[tuple[float, int]] = deque([(start, 0)])
        self._estimate: tuple[float, float] | None = None  # when it was made, seconds left then

    def advance(self, amount: int, now: float) -> None:
        """Record that `amount` more units are complete."""
        self.complete += amount
        if now - self.start < SETTLING_SECONDS:
            self._reports = deque([(now, self.complete)])
        elif len(self._reports) > 2 and now - self._reports[-1][0] < MERGED_SECONDS:
            self._reports[-1] = (self._reports[-1][0], self.complete)
        else:
            self._reports.append((now, self.complete))
        window = max(WINDOW_SECONDS, WINDOW_SHARE * (now - self.start))
        while len(self._reports) > 3 and self._reports[1][0] < now - window:
            self._reports.popleft()

    def rate(self, now: float) -> float | None:
        """Return the units a second, or None while too little is known."""
        (first_time, first), (last_time, last) = self._reports[0], self._reports[-1]
        intervals = len(self._reports) - 1
        if intervals < 1 or last <= first or now - self.start < 1:
            return None
        seconds = last_time - first_time
        if now - last_time > 2 * seconds / intervals:  # slower than it was
            seconds = now - first_time
        return (last - first) / seconds if seconds > 0 else None

    def seconds_left(self, now: float) -> float | None:
        """Return the seconds that the step will take from now on, or None while that is a guess."""
        rate = self.rate(now)
        measured = self._reports[-1][1] - self._reports[0][1]
        is_early = (
            now - self.start < FIRST_ESTIMATE_SECONDS
            or len(self._reports) < 3
            or measured < FIRST_ESTIMATE_SHARE * self.total
        )
        if rate is None or (is_early and self._estimate is None):
            return None
        since_report = min(now - self._reports[-1][0], measured / (len(self._reports) - 1) / rate)
        left = max(0.0, (self.total - self.complete) / rate - since_report)
        if self._estimate is not None:
            when, before = self._estimate
            smoothing = min(SMOOTHING_SECONDS, max(SMOOTHING_SHARE * left, MERGED_SECONDS))
            weight = 1 - math.exp(-(now - when) / smoothing)
            left = weight * left + (1 - weight) * max(0.0, before - (now - when))
        self._estimate = now, left
        return left


def format_rate(rate: float, unit: str) -> str:
    """Write units a second as 120 MB/s, 1.2 layers/min or 340 tokens/s; without a unit, nothing."""
    if not unit:
        return ""
    if unit == "bytes":
        return f"{format_bytes(rate)}/s"
    for seconds, period in ((1, "s"), (60, "min"), (3600, "h")):
        value = rate * seconds
        if value >= 1 or period == "h":
            break
    return f"{value:.0f} {unit}/{period}" if value >= 99.5 else f"{value:.2g} {unit}/{period}"


def format_time_left(seconds: float) -> str:
    """Write a time left roughly: a few seconds, about 40 s, about 2 min."""
    if seconds < 8:
        return "a few seconds"
    if seconds < 55:
        return f"about {round(seconds / 10) * 10} s"
    return f"about {format_duration(seconds)}"
