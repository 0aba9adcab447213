"""Text from files and errors, made safe and readable for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable

from cgconvert.errors import ARGUMENT
from cgconvert.escaping import printable
from cgconvert.options import Option

__all__ = ["age", "one_line", "with_flags"]

MAX_LINE = 2000

UNITS = ((86400, "days"), (3600, "h"), (60, "min"), (1, "s"))
"""Units of an age, in seconds."""


def with_flags(message: str, options: Iterable[Option]) -> str:
    """Replace the arguments that a library error names in backticks by flags of the command line.

    `mp_num` becomes --mp-num, `bits=4` --bits 4, `effort="fast"` --effort fast, `force=True`
    --force and `keep=False` --no-keep; an option with a short flag, such as `output`, becomes that.
    Whatever else stands in backticks stays.
    """
    flags = {option.name: option.short or option.flag for option in options}

    def flag(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if name not in flags:
            return match[0]
        if value in (None, "True") or (value == "False" and flags[name].startswith("--no-")):
            return flags[name]
        return f"{flags[name]} {value.strip(chr(34))}"

    return ARGUMENT.sub(flag, message)


def age(seconds: float) -> str:
    """Write an age in one unit, of which there are two or more: "90 s", "3 h", "2 days"."""
    size, unit = next(((s, u) for s, u in UNITS if seconds >= 2 * s), UNITS[-1])
    return f"{max(0, seconds) / size:.0f} {unit}"


def one_line(text: str) -> str:
    """Put a message on one line; the middle of a long one is cut, as it may quote a file."""
    line = printable(" ".join(text.split()))
    if len(line) <= MAX_LINE:
        return line
    return f"{line[: MAX_LINE * 3 // 4]} … {line[-MAX_LINE // 4 :]}"
