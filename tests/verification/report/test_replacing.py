"""A report takes the place of an earlier report, and of nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cgconvert.errors import OutputError, UsageError
from cgconvert.verification.report import WRITERS, check_report_path, write_reports
from cgconvert.verification.report.model import Report
from tests.support.reports import HOSTILE, report

FOREIGN = {
    ".json": '{"name": "my data", "note": "cgconvert verify"}',
    ".xml": '<?xml version="1.0"?>\n<testsuites name="pytest tests"/>',
    ".html": "<!doctype html><title>About cgconvert verify</title>",
    ".txt": "My thesis\n\nreference: Knuth, The Art\n",
    ".md": "# Read me\n\nRun `cgconvert verify: all`\n",
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_report_is_replaced_by_a_later_one(
    suffix: str, reports: list[Report], tmp_path: Path
) -> None:
    path = tmp_path / f"verdict{suffix}"
    for contents in (reports, [report(HOSTILE)], reports[:1]):
        write_reports(contents, path)
        check_report_path(path)
    path.write_bytes(b"")  # as mktemp makes it
    write_reports(reports, path)


@pytest.mark.parametrize("suffix", WRITERS)
def test_other_files_survive(suffix: str, reports: list[Report], tmp_path: Path) -> None:
    path = tmp_path / f"precious{suffix}"
    path.write_text(FOREIGN[suffix])
    (tmp_path / f"link{suffix}").symlink_to(path.name)
    os.mkfifo(tmp_path / f"pipe{suffix}")
    for name in ("precious", "link", "pipe"):
        with pytest.raises(
            UsageError, match="is no report of cgconvert's; choose another `report`"
        ):
            write_reports(reports, tmp_path / f"{name}{suffix}")
    assert path.read_text() == FOREIGN[suffix]
    assert (tmp_path / f"pipe{suffix}").is_fifo()


def test_folders_of_a_report_are_made_and_impossible_ones_refused_at_once(
    reports: list[Report], tmp_path: Path
) -> None:
    path = tmp_path / "new" / "er" / "verdict.html"
    check_report_path(path)
    assert not path.parent.exists()
    write_reports(reports, path)
    assert path.is_file()
    with pytest.raises(OutputError, match="is no folder that can be written"):
        check_report_path(path / "below" / "verdict.html")
