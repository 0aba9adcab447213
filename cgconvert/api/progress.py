"""Progress as people see it: a line in a terminal, lines in a log, a widget in a notebook."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TextIO

from cgconvert.escaping import printable
from cgconvert.io.pace import Pace, format_rate, format_time_left
from cgconvert.io.progress import Progress, SilentProgress, format_duration
from cgconvert.io.terminal import cell_width, is_controllable, shorten, terminal_width
from cgconvert.io.ticker import Ticker

__all__ = ["ProgressBar", "ProgressOption", "Status", "fit_line", "progress_for"]

ProgressOption = Progress | Literal["auto"] | bool | None
"""What a function of the API takes as `progress`."""

DRAW_SECONDS = 0.1
"""The line is drawn at most this often."""

TICK_SECONDS = 1.0
"""While nothing is reported, the time left is drawn this often."""

LOG_SECONDS = 30.0
"""Seconds after which a log gets another line."""

WIDGET = "{desc}  {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
"""What tqdm's widget shows."""

MAX_BAR, MIN_BAR = 30, 8
"""Columns of the bar itself; where there is no room for the shorter one there is none."""


LABEL_ROOM = 24, 24, 8, 4
"""Columns that the label has at least with each ending of the line, from the longest ending on."""

WIDE = 60
"""Columns from which on two spaces stand between the parts of the line."""

LABEL_SHARE = 0.45
"""The most of the line that a label takes if there is a bar."""


@dataclass(frozen=True)
class Status:
    """What there is to show of a step.

    Attributes:
        position: Where the step stands in the whole, as in "3 of 8"; may be empty.
        label: What is done.
        share: Which part of it is complete, from 0 to 1.
        rate: How fast, as in "120 MB/s"; may be empty.
        time_left: How long it will take, as in "about 2 min"; empty while that is not known.
        elapsed: How long everything has taken, at the end of the last step; else empty.
    """

    position: str
    label: str
    share: float
    rate: str = ""
    time_left: str = ""
    elapsed: str = ""


def fit_line(status: Status, width: int, *, ascii_only: bool = False) -> str:
    """Write a status in at most `width` columns.

    If there is not enough room, the least important parts are left out first: the word "left", then
    the bar, the rate and the time. The label is shortened to the room that is left, a path in the
    middle.
    """
    gap = "  " if width >= WIDE else " "
    start = f"{status.position}{gap}" if status.position else ""
    percent = f"{int(status.share * 100):3d}%"
    rate = f"{gap}{status.rate}" if status.rate else ""
    time_left = f"{gap}{status.time_left}" if status.time_left else ""
    left = " left" if time_left else f"{gap}in {status.elapsed}" if status.elapsed else ""
    endings = [percent + rate + time_left + left, percent + rate + time_left, percent + time_left]
    label_width = cell_width(status.label)

    def room(ending: str) -> int:
        return width - cell_width(start + gap + ending)

    line = ""
    for ending in endings[:2]:
        label_room = min(label_width, int(LABEL_SHARE * width), room(ending) - MIN_BAR - 2)
        if not line and label_room >= min(label_width, LABEL_ROOM[0]):
            bar_width = min(MAX_BAR, room(ending) - label_room - 2)
            bar = _bar(status.share, bar_width, ascii_only=ascii_only)
            line = f"{start}{shorten(status.label, label_room)}{gap}{bar}{gap}{ending}"
    for ending, least in zip((*endings, percent), LABEL_ROOM, strict=True):
        if not line and room(ending) >= min(label_width, least):
            line = f"{start}{shorten(status.label, room(ending))}{gap}{ending}"
    if not line:  # a window of a few columns
        line = f"{start}{percent}" if cell_width(start + percent) <= width else percent[:width]
    return line.replace("…", "~") if ascii_only else line


def _bar(share: float, width: int, *, ascii_only: bool) -> str:
    """Draw a bar of `width` columns, of which a `share` from 0 to 1 is full."""
    full, empty = ("#", "-") if ascii_only else ("━", "─")
    count = int(share * width)
    return full * count + empty * (width - count)


class _View(Protocol):
    """A place where the status of a step is shown."""

    def draw(self, status: Status, *, is_new: bool = False, is_last: bool = False) -> None:
        """Show a status: the first of a step, the last of all, or one between."""

    def close(self) -> None:
        """Leave the place tidy: what is printed next begins a line."""


class ProgressBar:
    """Progress on stderr, so that stdout holds only the result.

    A terminal has one line that is drawn again and again. Where stderr is no terminal, or a dumb
    one, a line is written when a step begins and every 30 s. A notebook has tqdm's widget.

    Args:
        context: What stands before the position of a step, as the number of a recipe's step.
        log_delay: Seconds before the first line of a log; most work is complete by then.
    """

    def __init__(self, context: str = "", *, log_delay: float = 0.0) -> None:
        self._context, self._log_delay = context, log_delay
        self._view: _View | None = None
        self._lock = threading.RLock()
        self._ticker = Ticker(self._tick, TICK_SECONDS)
        self._begun, self._expected = 0, 0
        self._label, self._unit = "", ""
        self._pace: Pace | None = None
        self._start = 0.0
        self._drawn = 0.0

    def expect(self, steps: int) -> None:
        """Show from now on that `steps` more steps follow."""
        with self._lock:
            self._expected = self._begun + steps

    def step(self, label: str, total: int) -> None:
        """Begin a step of `total` units; the one before is complete."""
        with self._lock:
            now = time.monotonic()
            if self._view is None:
                self._view = _view_for(self._log_delay, self._lock)
                self._start = self._start or now
            elif self._pace is not None:
                self._pace.complete = self._pace.total
                self._draw(now)
            self._begun += 1
            self._label, self._unit = printable(label), str(getattr(total, "unit", ""))
            self._pace = Pace(max(total, 1), now)
            self._draw(now, is_new=True)
        self._ticker.start()

    def advance(self, amount: int) -> None:
        """Show that `amount` more units are complete."""
        with self._lock:
            if self._pace is None:
                return
            now = time.monotonic()
            self._pace.advance(amount, now)
            if now - self._drawn >= DRAW_SECONDS:
                self._draw(now)

    def finish(self) -> None:
        """End the last step. What it showed stays visible."""
        self._ticker.stop()
        with self._lock:
            view, self._view = self._view, None
            if view is None or self._pace is None:
                return
            if sys.exception() is None:
                self._pace.complete = self._pace.total
            status = self._status(time.monotonic(), is_last=sys.exception() is None)
            self._pace = None
            view.draw(status, is_last=True)
            view.close()

    def _tick(self) -> None:
        with self._lock:
            if self._pace is not None:
                self._draw(time.monotonic())

    def _draw(self, now: float, *, is_new: bool = False) -> None:
        self._drawn = now
        if self._view is not None:
            self._view.draw(self._status(now), is_new=is_new)

    def _status(self, now: float, *, is_last: bool = False) -> Status:
        assert self._pace is not None
        is_counted = 1 < self._expected >= self._begun
        position = f"{self._begun} of {self._expected}" if is_counted else ""
        rate = self._pace.rate(now)
        is_complete = self._pace.complete >= self._pace.total
        seconds = None if is_complete else self._pace.seconds_left(now)
        return Status(
            position=" ".join(part for part in (self._context, position) if part),
            label=self._label,
            share=min(1.0, self._pace.complete / self._pace.total),
            rate="" if rate is None or is_last else format_rate(rate, self._unit),
            time_left="" if seconds is None else format_time_left(seconds),
            elapsed=format_duration(now - self._start) if is_last else "",
        )


class _Line:
    """One line of a terminal, drawn again in place.

    What Python prints to the same terminal meanwhile stands above it: until the line is closed,
    stdout and stderr first erase it.
    """

    def __init__(self, stream: TextIO, lock: threading.RLock) -> None:
        self.stream, self.lock = stream, lock
        self._ascii_only = not _can_write(stream, "━─…")
        self._is_drawn, self._is_free = False, True
        self._replaced = {
            name: _AboveLine(current, self)
            for name in ("stdout", "stderr")
            if is_controllable(current := getattr(sys, name))
        }
        for name, proxy in self._replaced.items():
            setattr(sys, name, proxy)

    def draw(self, status: Status, *, is_new: bool = False, is_last: bool = False) -> None:
        if not self._is_free:  # another text is in the middle of a line
            return
        width = max(1, terminal_width(self.stream) - 1)  # a full line would wrap
        line = fit_line(status, width, ascii_only=self._ascii_only)
        self.stream.write(f"\r{line}\x1b[K")
        self.stream.flush()
        self._is_drawn = True

    def erase(self) -> None:
        """Remove the line before another text is printed."""
        if self._is_drawn:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
            self._is_drawn = False

    def release(self, text: str) -> None:
        """Take note of a text that was printed: the line comes back after the end of its line."""
        if text:
            self._is_free = text.endswith("\n")

    def close(self) -> None:
        for name, proxy in self._replaced.items():
            if getattr(sys, name) is proxy:
                setattr(sys, name, proxy.stream)
        if self._is_drawn:
            self.stream.write("\n")
            self.stream.flush()


class _AboveLine:
    """A stream whose text is printed above a line: everything else is the stream's own."""

    def __init__(self, stream: TextIO, line: _Line) -> None:
        self.stream, self._line = stream, line

    def write(self, text: str) -> int:
        with self._line.lock:
            self._line.erase()
            count = self.stream.write(text)
            self.stream.flush()
            self._line.release(text)
        return count

    def writelines(self, lines: Any) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class _Log:
    """Plain lines in a log: when a step begins, and every LOG_SECONDS."""

    def __init__(self, stream: TextIO, delay: float) -> None:
        self.stream = stream
        self._silent_until = time.monotonic() + delay
        self._written = -LOG_SECONDS
        self._has_begun = False

    def draw(self, status: Status, *, is_new: bool = False, is_last: bool = False) -> None:
        now = time.monotonic()
        if is_last:
            if self._has_begun or now >= self._silent_until:
                self._write(_log_line(status))
        elif now < self._silent_until:
            return
        elif is_new or not self._has_begun or now - self._written >= LOG_SECONDS:
            is_start = is_new and not status.share
            text = f"{status.position}  {status.label}" if is_start else _log_line(status)
            self._write(text.strip())
            self._written, self._has_begun = now, True

    def close(self) -> None:
        pass

    def _write(self, text: str) -> None:
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        self.stream.flush()


def _log_line(status: Status) -> str:
    """Write a status as a line of any length."""
    left = f"{status.time_left} left" if status.time_left else ""
    elapsed = f"in {status.elapsed}" if status.elapsed else ""
    percent = f"{int(status.share * 100)}%"
    parts = (status.position, status.label, percent, status.rate, left, elapsed)
    return "  ".join(part for part in parts if part)


class _Widget:
    """tqdm's widget of a notebook: one bar for each step."""

    def __init__(self) -> None:
        self._bar: Any = None

    def draw(self, status: Status, *, is_new: bool = False, is_last: bool = False) -> None:
        if is_new:
            from tqdm.auto import tqdm

            # Worker processes are forked while the bar is drawn. tqdm's monitor thread and its
            # semaphore shared by processes are switched off: a fork could copy them in a held
            # state.
            tqdm.monitor_interval = 0
            tqdm.set_lock(threading.RLock())
            self.close()
            label = f"{status.position}  {status.label}".strip()
            self._bar = tqdm(total=100, desc=label, bar_format=WIDGET, file=sys.stderr)
        self._bar.update(int(status.share * 100) - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _view_for(log_delay: float, lock: threading.RLock) -> _View:
    """Choose how progress is shown: a widget in a notebook, one line in a terminal, or a log."""
    if _in_notebook():
        return _Widget()
    if is_controllable(sys.stderr):
        return _Line(sys.stderr, lock)
    return _Log(sys.stderr, log_delay)


def _can_write(stream: TextIO, characters: str) -> bool:
    """Whether the stream's encoding has these characters."""
    try:
        characters.encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def progress_for(progress: ProgressOption) -> Progress:
    """Return the object that reports progress.

    None and False are silent, True shows it, and "auto" does in a terminal or a notebook.
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
