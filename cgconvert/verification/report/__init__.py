"""A verification in files: the suffix says whether text, JSON, JUnit XML, HTML or Markdown."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cgconvert.errors import InputError, OutputError, UsageError
from cgconvert.io.reading import read_head
from cgconvert.io.staging import Staging
from cgconvert.io.system.names import is_writable_folder
from cgconvert.io.system.open_folder import OpenFolder
from cgconvert.io.system.owners import is_users
from cgconvert.verification.report.html import as_html
from cgconvert.verification.report.junit import as_junit
from cgconvert.verification.report.markdown import as_markdown
from cgconvert.verification.report.model import Report, as_json, as_printable_object
from cgconvert.verification.report.text import as_text

__all__ = ["WRITERS", "check_report_path", "is_report", "write_reports"]

WRITERS: Mapping[str, Callable[[Sequence[Report]], str]] = {
    ".json": as_json,
    ".xml": lambda reports: as_junit(as_printable_object(reports)),
    ".html": lambda reports: as_html(as_printable_object(reports)),
    ".txt": as_text,
    ".md": lambda reports: as_markdown(as_printable_object(reports)),
}
"""Functions that turn reports into the text of a file, by the suffix of the file."""


MARKS: Mapping[str, re.Pattern[bytes]] = {
    ".json": re.compile(rb'"tool":\s*\{\s*"name":\s*"cgconvert"'),
    ".xml": re.compile(rb'<testsuites name="cgconvert verify"'),
    ".html": re.compile(rb": cgconvert verify</title>"),
    ".txt": re.compile(rb"^reference: .*, weights .*computed in ", re.MULTILINE),
    ".md": re.compile(rb"^## .*cgconvert verify: "),
}
"""What the head of a report has and no other file, by the suffix of the file."""

HEAD_BYTES = 16 << 10


def write_reports(reports: Sequence[Report], path: Path) -> None:
    """Write reports in the format of the path's suffix, the whole file or nothing.

    The folders of the path are made where they are missing.

    Raises UsageError for a suffix without a format, OutputError if writing fails.
    """
    check_report_path(path)
    # Names of files may hold bytes that are not UTF-8; these are escaped, as in JSON.
    text = WRITERS[path.suffix](reports).encode(errors="backslashreplace")
    with Staging(path, ReportGuard()) as staging:
        try:
            (staging.content / path.name).write_bytes(text)
            staging.commit_files()
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def check_report_path(path: Path) -> None:
    """Check that a report can be written to this path; call this before long work.

    Raises:
        UsageError: No report format has this suffix, something other than an earlier report lies
            there, or another user's link in a folder that all can write is on the way.
        OutputError: Its folder can be neither written nor made.
    """
    if path.suffix not in WRITERS:
        raise UsageError(f"{path}: a report ends in {', '.join(WRITERS)}")
    ReportGuard().check(path)
    folder = Path(os.path.realpath(path)).parent
    existing = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not is_writable_folder(existing):
        raise OutputError(f"{path}: {existing} is no folder that can be written")
    parents = Path(os.path.abspath(path)).parents
    OpenFolder.at(next(place for place in parents if place.is_dir())).close()


class ReportGuard:
    """A guard that lets a report replace an earlier report of this user's, or an empty file."""

    def check(self, output: Path) -> bool:
        """Whether an earlier report lies at `output`; raises UsageError if anything else does."""
        if not os.path.lexists(output):
            return False
        if output.is_symlink():
            raise UsageError(
                f"{output}: is a link, and is no report of cgconvert's; choose another `report`"
            )
        if output.is_dir():
            raise UsageError(f"{output}: is a folder; a report is a file")
        if not is_users(output.lstat()):
            raise UsageError(f"{output}: belongs to another user; choose another `report`")
        try:
            if _is_report_or_empty(output):
                return True
        except InputError as error:
            raise OutputError(str(error)) from error
        raise UsageError(
            f"{output}: exists and is no report of cgconvert's; choose another `report`"
        )

    def is_own(self, path: Path) -> bool:
        """Whether a file is this user's, no link, and an earlier report or empty."""
        try:
            return is_users(path.lstat()) and _is_report_or_empty(path)
        except InputError:
            return False


def _is_report_or_empty(path: Path) -> bool:
    """Whether a path is a regular file that is empty or a report. Raises InputError."""
    if not stat.S_ISREG(path.lstat().st_mode):  # opening a pipe would wait for a writer
        return False
    head = _head(path)
    return not head or bool(MARKS[path.suffix].search(head))


def is_report(path: Path) -> bool:
    """Whether a file is a report that cgconvert wrote, by its suffix and its beginning."""
    if path.suffix not in MARKS:
        return False
    try:
        head = _head(path)
    except InputError:
        return False
    return head is not None and MARKS[path.suffix].search(head) is not None


def _head(path: Path) -> bytes | None:
    """The first bytes of a regular file; None of anything else. Raises InputError."""
    return read_head(path, HEAD_BYTES) if path.is_file() else None
