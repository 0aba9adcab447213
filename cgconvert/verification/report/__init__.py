"""A verification in files: the suffix says whether text, JSON, JUnit XML, HTML or Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cgconvert.errors import OutputError, UsageError
from cgconvert.io.staging import write_atomic
from cgconvert.verification.report.html import as_html
from cgconvert.verification.report.junit import as_junit
from cgconvert.verification.report.markdown import as_markdown
from cgconvert.verification.report.model import Report, as_json, as_json_object
from cgconvert.verification.report.text import as_text

__all__ = ["WRITERS", "check_report_path", "write_reports"]

WRITERS: Mapping[str, Callable[[Sequence[Report]], str]] = {
    ".json": as_json,
    ".xml": lambda reports: as_junit(as_json_object(reports)),
    ".html": lambda reports: as_html(as_json_object(reports)),
    ".txt": as_text,
    ".md": lambda reports: as_markdown(as_json_object(reports)),
}
"""Functions that turn reports into the text of a file, by the suffix of the file."""


def write_reports(reports: Sequence[Report], path: Path) -> None:
    """Write reports in the format of the path's suffix, the whole file or nothing.

    Raises UsageError for a suffix without a format, OutputError if writing fails.
    """
    check_report_path(path)
    try:
        # Names of files may hold bytes that are not UTF-8; these are escaped, as in JSON.
        text = WRITERS[path.suffix](reports)
        write_atomic(path, text.encode(errors="backslashreplace"))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def check_report_path(path: Path) -> None:
    """Raise UsageError if no report can be written to this path; call this before long work.

    No report format has its suffix then, or it is an existing folder.
    """
    if path.suffix not in WRITERS:
        raise UsageError(f"{path}: a report ends in {', '.join(WRITERS)}")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; a report is a file")
