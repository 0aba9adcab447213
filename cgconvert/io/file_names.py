"""Names of files: whether a text can be one, and how a message shows it."""

from __future__ import annotations

import errno
import os
from pathlib import Path, PurePath, PureWindowsPath

__all__ = ["can_exist", "is_possible", "is_possible_on_windows", "path_from_here"]

FORBIDDEN = frozenset('<>:"|?*') | {chr(code) for code in range(32)}
"""Characters that Windows has in no name (docs: Naming Files, Paths, and Namespaces). What follows
a colon would be written where no folder shows it."""

DEVICES = frozenset(
    ("CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10)))
)
"""Names that stand for devices on Windows, with any suffix."""


def is_possible(path: Path) -> bool:
    """Whether a file can have this path on this system, if it is not too long.

    It has no NUL, and every character stands for bytes. Bytes that are not UTF-8 are lone
    surrogates in Python; those from U+DC80 to U+DCFF stand for such bytes, others for nothing.
    """
    if os.name == "nt" and not is_possible_on_windows(path):
        return False
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def can_exist(path: Path) -> bool:
    """Whether a file can have this path, neither the whole of which nor a name is too long."""
    if not is_possible(path):
        return False
    try:
        path.lstat()
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    return True


def is_possible_on_windows(path: PurePath) -> bool:
    """Whether a file of Windows can have this path: no part is a device or has a forbidden sign."""
    windows_path = PureWindowsPath(str(path))
    names = [part for part in windows_path.parts if part != windows_path.anchor]
    return not any(
        FORBIDDEN & set(name)
        or name.split(".")[0].rstrip().upper() in DEVICES
        or (name.endswith((".", " ")) and name != "..")
        for name in names
    )


def path_from_here(path: Path) -> Path:
    """The path from the working folder if it lies there or below, as a user would type it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
