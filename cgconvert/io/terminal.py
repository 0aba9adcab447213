"""What a terminal shows: its width, its colours, and text that is made to fit."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections.abc import Iterable
from typing import TextIO

__all__ = [
    "cell_width",
    "is_controllable",
    "is_terminal",
    "shorten",
    "shorten_path",
    "terminal_width",
    "uses_color",
    "wrapped",
    "wrapped_fields",
]

DEFAULT_WIDTH = 80
"""Columns where no terminal says how many it has."""

ELLIPSIS = "…"

NARROW = 60
"""The least columns in which a continued text is aligned with its beginning; in fewer there is too
little room for that."""

SLASHED = re.compile(r"[^/]*/|[^/]+")
"""The parts of a path, each with its slash."""


def terminal_width(stream: TextIO | None = None) -> int:
    """Return the columns that the terminal behind a stream has now, else COLUMNS or 80.

    It is asked at every call, because a window may be resized at any time.
    """
    if stream is not None:
        try:
            columns = os.get_terminal_size(stream.fileno()).columns
        except (OSError, ValueError, AttributeError):  # no terminal, or no file at all
            columns = 0
        if columns > 0:
            return columns
    return shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal; a closed one is none."""
    try:
        return stream.isatty()
    except (ValueError, AttributeError):
        return False


def is_controllable(stream: TextIO) -> bool:
    """Whether a line on this stream can be drawn again in place: a terminal that is not dumb."""
    return is_terminal(stream) and os.environ.get("TERM", "") != "dumb"


def uses_color(stream: TextIO) -> bool:
    """Whether text on this stream may be coloured.

    NO_COLOR (no-color.org) forbids it, FORCE_COLOR asks for it where there is no terminal.
    """
    if os.environ.get("NO_COLOR"):
        return False
    force = os.environ.get("FORCE_COLOR", "")
    if force:
        return force not in ("0", "false")
    return is_controllable(stream)


def cell_width(text: str) -> int:
    """Count the columns that a text takes: two for a wide character, none for a combining one."""
    if text.isascii():
        return len(text)
    return sum(map(_character_width, text))


def shorten_path(path: str, width: int) -> str:
    """Shorten a path in the middle to at most `width` columns.

    The file's name is kept longest, then the first folder, then the folders nearest to the file:
    out/codegen-350M-mono/gguf/model.gguf becomes out/…/gguf/model.gguf, then …/model.gguf. A name
    that is too long by itself loses its own middle.
    """
    if cell_width(path) <= width:
        return path
    root = "/" if path.startswith("/") else ""
    parts = path.removeprefix(root).split("/")
    *folders, name = parts
    for first in (1, 0):
        for last in range(len(folders) - first - 1, -1, -1):
            kept = folders[len(folders) - last :]
            start = [root + folders[0]] if first and folders else []
            shortened = "/".join([*start, ELLIPSIS, *kept, name])
            if cell_width(shortened) <= width:
                return shortened
    return _without_middle(name, width)


def shorten(text: str, width: int) -> str:
    """Shorten a text to at most `width` columns.

    A path at its end loses its middle; any other text loses its end.

    What follows the first word is a path if it has a slash or is a single word.
    """
    if cell_width(text) <= width:
        return text
    start, space, path = text.partition(" ")
    room = width - cell_width(start) - 1
    is_path = bool(space) and ("/" in path or " " not in path)
    if is_path and room >= 8:
        return f"{start} {shorten_path(path, room)}"
    return _beginning(text, width - 1).rstrip() + ELLIPSIS if width > 0 else ""


def wrapped(text: str, width: int | None, indent: str = "") -> list[str]:
    """Break a text into lines of at most `width` columns, each after `indent`.

    With None for `width` it stays one line. A word that is longer than a line, such as a path, is
    broken after its slashes if it has any.
    """
    if not text:
        return []
    if width is None:
        return [indent + text]
    room = max(width - cell_width(indent), 1)
    lines = [""]
    for word in text.split(" "):
        gap = " " if lines[-1] else ""
        if cell_width(lines[-1]) + cell_width(gap) + cell_width(word) <= room:
            lines[-1] += gap + word
        elif cell_width(word) <= room:
            lines.append(word)
        else:
            lines[-1] += gap
            for piece in SLASHED.findall(word):
                for start in range(0, len(piece), room):
                    part = piece[start : start + room]
                    if cell_width(lines[-1]) + cell_width(part) <= room:
                        lines[-1] += part
                    else:
                        lines.append(part)
    return [indent + line.rstrip() for line in lines if line.strip()]


def wrapped_fields(fields: Iterable[tuple[str, str]], width: int | None) -> list[str]:
    """Write names and their texts in two columns; what does not fit is continued below its text.

    In fewer than NARROW columns it is continued near the left edge.
    """
    rows = list(fields)
    label_width = max((cell_width(name) for name, _ in rows), default=0) + 1
    indent = label_width if width is None or width >= NARROW else 2
    lines = []
    for name, text in rows:
        room = None if width is None else width - indent
        if indent == label_width:
            first, *rest = wrapped(text, room) or [""]
            lines.append(f"{name:<{label_width}}{first}".rstrip())
        else:
            first, *rest = wrapped(f"{name:<{label_width}}{text}", room)
            lines.append(first)
        lines += [" " * indent + line for line in rest]
    return lines


def _character_width(character: str) -> int:
    """Count the columns of one character; W and F are Unicode's wide and fullwidth."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _beginning(text: str, width: int) -> str:
    """Return as many characters from the beginning of a text as `width` columns hold."""
    end, columns = 0, 0
    while end < len(text) and columns + _character_width(text[end]) <= width:
        columns += _character_width(text[end])
        end += 1
    return text[:end]


def _without_middle(text: str, width: int) -> str:
    """Cut the middle of a text out, so that its beginning and its end take `width` columns."""
    if width < 3:
        return _beginning(text, width)
    end = _beginning(text[::-1], (width - 1) // 2)[::-1]
    return _beginning(text, width - 1 - cell_width(end)) + ELLIPSIS + end
