"""The errors of cgconvert: one line each (what, where, what to do), a code and an exit code.

A message names an argument in backticks, as Python writes it: "give it with `mp_num`", "add
`bits=4`", "`effort=\"fast\"` takes no text". `str(error)` is that; the command line shows
`--mp-num`, `--bits 4` and `--effort fast` in its place (`cli/text.py`), and a report, which people
read who typed neither, the bare words (`in_words`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

__all__ = [
    "ARGUMENT",
    "CgconvertError",
    "InputError",
    "Interrupted",
    "MissingRuntimeError",
    "OutputError",
    "RuntimeEndedError",
    "UsageError",
    "VerificationError",
    "first_few",
    "in_words",
]

ARGUMENT = re.compile(r"`(\w+)(?:=([^`\s]+))?`")
"""An argument in a message, with its name and its value as groups: `mp_num`, `bits=4`."""


class CgconvertError(Exception):
    """Base of every expected failure; its text is the one line printed on stderr.

    Attributes:
        code: Names the kind of failure for programs. It never changes.
        exit_code: What the command line exits with.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP arrived.

    A BaseException, so that `except Exception` does not swallow it; not a KeyboardInterrupt, for
    which click would print a line of its own.
    """


class UsageError(CgconvertError):
    """The arguments make no sense together, or are ambiguous."""

    code = "usage"
    exit_code = 2


class MissingRuntimeError(UsageError):
    """A package that is needed is not installed, cannot be imported, or is too old.

    Args:
        package: The name under which it is installed, such as llama-cpp-python.
        extra: The extra of cgconvert that requires it.
        fault: What is wrong with the installed package; "" if it is not installed.
        again: Whether the package is to be installed over itself.
    """

    code = "missing-runtime"

    def __init__(self, package: str, extra: str, fault: str = "", *, again: bool = False) -> None:
        # Not imported at the top: almost no run needs it.
        from cgconvert import installation

        packages = installation.requirements(extra, package)
        command = installation.install_command(packages, again=again)
        hint = installation.compiler_hint(package)
        super().__init__(f"{package} {fault or 'is not installed'}: {command}{hint}")


class InputError(CgconvertError):
    """A checkpoint, tokenizer, recipe or artefact is missing, broken or of an unknown kind."""

    code = "input"
    exit_code = 3


class RuntimeEndedError(InputError):
    """The process of a runtime crashed, or took more memory or time than it may."""

    code = "runtime-ended"


class VerificationError(CgconvertError):
    """The artefact deviates from its source, or a runtime computes logits that are not finite."""

    code = "verification"
    exit_code = 4


class OutputError(CgconvertError):
    """Writing failed or would fail: no space, no permission, the target exists."""

    code = "output"
    exit_code = 5


def in_words(message: str) -> str:
    """Write the arguments in a message as plain words: `device="cpu"` becomes device cpu."""

    def words(argument: re.Match[str]) -> str:
        name, value = argument[1], argument[2]
        return name if value in (None, "True") else f"{name} {value.strip(chr(34))}"

    return ARGUMENT.sub(words, message)


def first_few(
    texts: Sequence[str], limit: int, *, separator: str = "; ", conjunction: str | None = None
) -> str:
    """Join the first `limit` texts and say how many more there are: "a; b; 3 more".

    `conjunction` stands before that number, as `separator` does unless it is given.
    """
    shown, rest = separator.join(texts[:limit]), len(texts) - limit
    if rest <= 0:
        return shown
    return f"{shown}{separator if conjunction is None else conjunction}{rest} more"
