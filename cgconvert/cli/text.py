"""What files say, as it may be shown on a terminal."""

from __future__ import annotations

__all__ = ["one_line", "printable"]

MAX_LINE = 2000


def printable(text: str) -> str:
    """Control characters, and what is no character, as escapes: they could drive a terminal."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def one_line(text: str) -> str:
    """A message on one line, of bounded length: some quote what a file holds."""
    line = printable(" ".join(text.split()))
    if len(line) <= MAX_LINE:
        return line
    return f"{line[: MAX_LINE * 3 // 4]} … {line[-MAX_LINE // 4 :]}"
