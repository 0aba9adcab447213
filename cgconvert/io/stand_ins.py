"""Recognise a file that stands in for the real one: a pointer, or a web page.

A repository that was cloned without git-lfs has a pointer of three lines in place of each large
file, and a download that failed may leave the server's error page.
"""

from __future__ import annotations

from pathlib import Path

from cgconvert.errors import InputError
from cgconvert.io.reading import read_head

__all__ = ["HEAD_BYTES", "check_head", "refuse_pointer", "refuse_stand_in"]

HEAD_BYTES = 64
"""Bytes at the start of a file that are enough to recognise each of them."""

_POINTERS = {
    b"version https://git-lfs": ("git-lfs pointer", "git lfs pull"),
    b"version https://hawser": ("git-lfs pointer", "git lfs pull"),
    b"# xet version": ("git-xet pointer", "git xet checkout"),
}
"""How each kind of pointer begins, its name, and what fetches the real file. Format:
docs/spec.md of git-lfs/git-lfs, whose earlier name was hawser."""

_PAGES = (b"<!doctype", b"<html", b"<?xml")


def refuse_pointer(path: Path, head: bytes) -> None:
    """Raise InputError if a file is a pointer; `head` has its first HEAD_BYTES."""
    for start, (kind, command) in _POINTERS.items():
        if head.removeprefix(b"\xef\xbb\xbf").startswith(start):
            raise InputError(f"{path}: it is a {kind}; fetch the real file with {command}")


def refuse_stand_in(path: Path, head: bytes) -> None:
    """Raise InputError if a file is a pointer or a web page; `head` has its first HEAD_BYTES."""
    refuse_pointer(path, head)
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGES):
        raise InputError(f"{path}: it is an HTML page; the download went wrong, fetch it again")


def check_head(path: Path) -> None:
    """Read the start of a regular file and refuse what stands in for the real one.

    Raises InputError if it does, or if the file cannot be read.
    """
    refuse_stand_in(path, read_head(path, HEAD_BYTES))
