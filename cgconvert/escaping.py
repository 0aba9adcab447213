"""The one way in which text from files and users is made safe to print, to quote and to write.

Text from a file may hold sequences that change a terminal's colours or move its cursor, characters
that turn the order of a line round (Trojan Source, CVE-2021-42574), that nobody sees, or that end a
line where nobody expects it. They appear as Python writes them: `\\x1b`, `\\u202e`, `\\n`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["abridged", "escaped", "json_escaped", "printable"]

UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Letters and marks that leave no trace on the screen, though `str.isprintable` lets them pass:
those of Unicode's Default_Ignorable_Code_Point. All others of these, such as zero-width spaces, are
format characters (Cf), which do not pass."""


def printable(text: str, keep: str = "") -> str:
    """Escape control and format characters, line separators, lone surrogates and unseen letters.

    What is left is one line in which every character is seen, but for the characters in `keep`.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep else _escaped(c) for c in text)


def escaped(value: Any, keep: str = "") -> Any:
    """Escape all texts in a value of JSON's kinds as `printable` does, names too."""
    if isinstance(value, str):
        return printable(value, keep)
    if isinstance(value, Mapping):
        return {escaped(name, keep): escaped(entry, keep) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(escaped(entry, keep) for entry in value)
    return value


def json_escaped(text: str) -> str:
    """Write what `printable` escapes as JSON does (`\\u202e`), in the text of a JSON document."""
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(c if c == "\n" or _escaped(c) == c else json.dumps(c)[1:-1] for c in text)


def abridged(text: str, limit: int = 80) -> str:
    """Escape a text and cut its middle out, so that a message can quote it."""
    start = printable(text[: limit + 1])
    if len(text) <= limit and len(start) <= limit:
        return start
    end = printable(text[-limit // 4 :])[-limit // 4 :]
    return f"{start[: limit - limit // 4 - 1]}…{end}"


def _escaped(character: str) -> str:
    if character.isprintable() and not UNSEEN.match(character):
        return character
    return character.encode("unicode_escape", "surrogatepass").decode()
