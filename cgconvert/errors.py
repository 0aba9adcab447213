"""The errors a person sees: each one line (what, where, what to do) and a stable exit code."""

from __future__ import annotations

__all__ = [
    "CgconvertError",
    "InputError",
    "Interrupted",
    "MissingRuntimeError",
    "OutputError",
    "UsageError",
    "VerificationError",
]


class CgconvertError(Exception):
    """Base of every expected failure; its text is the one line printed on stderr."""

    exit_code = 1


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP. Not a KeyboardInterrupt: click answers that with a line of its
    own."""


class UsageError(CgconvertError):
    """What was asked for makes no sense, or is ambiguous."""

    exit_code = 2


class MissingRuntimeError(UsageError):
    """A runtime, an extra or a device that is needed is not there."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'cgconvert[{extra}]'")


class InputError(CgconvertError):
    """A checkpoint, tokenizer, recipe or artefact is missing, broken or of another kind."""

    exit_code = 3


class VerificationError(CgconvertError):
    """The artefact was read and run, and is not what it should be."""

    exit_code = 4


class OutputError(CgconvertError):
    """Writing failed or would fail: no space, no permission, the target exists."""

    exit_code = 5
