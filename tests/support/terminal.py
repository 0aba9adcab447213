"""A terminal for tests: runs a command in one and keeps what a person sees."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cgconvert.io.terminal import cell_width

CONTROL = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])")
"""Sequences that a terminal obeys: colours (m) and erasing to the end of the line (K)."""


@dataclass
class Screen:
    """The lines of a terminal of `columns`, as wrapped by it; colours are left out.

    `frames` has the last line as it was whenever it was drawn anew, with the time.
    """

    columns: int
    lines: list[str] = field(default_factory=lambda: [""])
    frames: list[str] = field(default_factory=list)
    column: int = 0
    wrapped: int = 0

    def feed(self, text: str) -> None:
        """Obey what a program has written."""
        position = 0
        while position < len(text):
            control = CONTROL.match(text, position)
            if control:
                if control[2] == "K":
                    self.lines[-1] = self.lines[-1][: self.column]
                position = control.end()
                continue
            character = text[position]
            position += 1
            if character == "\r":
                self.frames.append(self.lines[-1])
                self.column = 0
            elif character == "\n":
                self.frames.append(self.lines[-1])
                self.lines.append("")
                self.column = 0
            else:
                self._put(character)

    def _put(self, character: str) -> None:
        if cell_width(self.lines[-1][: self.column] + character) > self.columns:
            self.lines.append("")
            self.column = 0
            self.wrapped += 1
        line = self.lines[-1]
        self.lines[-1] = line[: self.column] + character + line[self.column + 1 :]
        self.column += 1

    @property
    def text(self) -> str:
        """All lines, without spaces at their ends."""
        return "\n".join(line.rstrip() for line in self.lines)


@dataclass(frozen=True)
class Session:
    """A command that ended in a terminal: its code, what it wrote, and the screen."""

    code: int
    raw: str
    screen: Screen


def run_in_terminal(
    arguments: Sequence[str],
    *,
    columns: int = 80,
    folder: Path | None = None,
    env: Mapping[str, str] | None = None,
    on_output: Callable[[str, int, subprocess.Popen[bytes]], None] | None = None,
    seconds: float = 120,
) -> Session:
    """Run a command whose stdin, stdout and stderr are one terminal.

    Args:
        arguments: The command.
        columns: Columns of the terminal.
        folder: Where it runs.
        env: Variables of its environment, beside this process's; an empty one is taken away.
        on_output: Called with all that was written so far, the terminal and the process.
        seconds: After this time the command is killed, which is an error.
    """
    parent, child = pty.openpty()
    resize(parent, columns)
    variables = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "", **(env or {})}
    process = subprocess.Popen(
        arguments,
        stdin=child,
        stdout=child,
        stderr=child,
        cwd=folder,
        env={name: value for name, value in variables.items() if value},
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    os.close(child)
    data, deadline = b"", time.monotonic() + seconds
    screen = Screen(columns)
    try:
        while True:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{arguments} took longer than {seconds} s: {data[-500:]!r}")
            if not select.select([parent], [], [], 0.2)[0]:
                continue
            try:
                piece = os.read(parent, 65536)
            except OSError:  # the last process with the terminal has ended
                piece = b""
            if not piece:
                break
            data += piece
            if on_output is not None:
                on_output(data.decode(errors="replace"), parent, process)
        code = process.wait(seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        os.close(parent)
    raw = data.decode(errors="replace")
    screen.feed(raw.replace("\r\n", "\n"))
    return Session(code, raw, screen)


def resize(terminal: int, columns: int) -> None:
    """Give a terminal another width, as a person does who resizes its window."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))


def _take_terminal() -> None:
    """Make stdin the terminal of the new session, so that Ctrl-C typed there comes as a signal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
