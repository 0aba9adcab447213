"""The report in a terminal: the worst first, no line too wide, nothing cut."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cgconvert.verification.report.text import as_table, as_text, wrapped
from cgconvert.verification.thresholds import Verdict
from tests.support.reports import CHECKS, report

LONG = "out/a-folder/with-a-rather-long-name/and-one-more/codegen-350M-mono-Q4_K_M.gguf"


def words(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("width", [24, 40, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut(width: int) -> None:
    checks = (
        *CHECKS,
        replace(CHECKS[1], name="weights.equal", detail=f"1 of 9 differ in {'x' * 130}; 2 more"),
    )
    reports = [report(LONG, checks), report("b.gguf", CHECKS[:1])]
    text = as_text(reports, width)
    assert max(map(len, text.splitlines())) <= width
    joined = words(text)
    for made in reports:
        for check in made.checks:
            assert words(check.detail) in joined
        assert words(made.sentence) in joined
    assert "docs/verify.md#weightsequal" in joined


def test_failures_come_first_then_warnings_then_what_passed() -> None:
    lines = as_table(report()).splitlines()
    verdicts = [line.split()[0] for line in lines if line[:1].isalpha()][2:-1]
    assert verdicts == ["FAIL", "FAIL", "warning", "pass", "pass", "info", "info"]
    failed = lines.index(next(line for line in lines if line.startswith("FAIL")))
    assert lines[failed + 1].lstrip().startswith("-> choose a type with more bits")
    assert "5 checks: 2 failed, 1 with a warning, 2 passed" in lines


def test_failed_artefacts_come_first_in_the_summary() -> None:
    passing = tuple(check for check in CHECKS if check.verdict == Verdict.PASS)
    text = as_text([report("a.gguf", passing), report("b.gguf"), report("c.gguf", passing)])
    *_, b, a, c, empty, total = text.splitlines()
    assert [line.split()[:2] for line in (b, a, c)] == [
        ["FAIL", "b.gguf"], ["pass", "a.gguf"], ["pass", "c.gguf"],
    ]  # fmt: skip
    assert (empty, total) == ("", "Do not ship b.gguf (1 of 3 artefacts).")


def test_a_path_is_broken_behind_a_slash() -> None:
    assert wrapped("see some/long/path/to/a/file.gguf now", 16) == [
        "see some/long/", "path/to/a/", "file.gguf now",
    ]  # fmt: skip
    assert wrapped("a " + "b" * 10, 4, "  ") == ["  a", "  bb", "  bb", "  bb", "  bb", "  bb"]
