"""The Markdown report says what the JSON report says, whatever an artefact calls itself."""

from __future__ import annotations

from pathlib import Path

from markdown_it import MarkdownIt

from cgconvert.verification.report.model import Report
from cgconvert.verification.thresholds import at_most
from tests.support.reports import HOSTILE, Page, report, written


def page_of(reports: list[Report], folder: Path) -> Page:
    """The Markdown as GitHub shows it: CommonMark with tables, HTML in it included."""
    text = written(reports, folder / "verdict.md")
    return Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))


def test_the_tables_have_every_artefact_and_check(reports: list[Report], tmp_path: Path) -> None:
    page = page_of(reports, tmp_path)
    overview, *details = page.tables
    assert len(overview) == 1 + len(reports)
    assert [len(table) for table in details] == [1 + len(entry.checks) for entry in reports]
    for table in page.tables:
        assert {len(row) for row in table} == {len(table[0])}
    for entry, table in zip(reports, details, strict=True):
        assert {row[1] for row in table[1:]} == {check.name for check in entry.checks}


def test_failures_come_first_and_say_what_to_do(tmp_path: Path) -> None:
    good, bad = report("good.gguf", (at_most("end_of_text", 0, 0),)), report("bad.gguf")
    page = page_of([good, bad], tmp_path)
    assert [row[1] for row in page.tables[0][1:]] == ["bad.gguf", "good.gguf"]
    text = (tmp_path / "verdict.md").read_text("utf-8")
    assert text.startswith("## ❌ cgconvert verify: fail\n\nDo not ship bad.gguf")
    (line,) = [line for line in text.splitlines() if line.startswith("- ❌ **logits.nmse**")]
    assert "0.01235 (bound \\<= 0.003)" in line
    assert "docs/verify.md\\#logitsnmse" in line


def test_names_are_text_and_not_markup(tmp_path: Path) -> None:
    for path in (HOSTILE, "a|b|c", "`x` **y** [z](https://evil.example) ![](x) <b>", "1. x\n# y"):
        page = page_of([report(path), report("plain")], tmp_path)
        names = {name for name, _ in page.elements}
        assert names <= {
            "h2", "h3", "p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "strong",
            "details", "summary",
        }, path  # fmt: skip
        assert len(page.tables[0]) == 3
        shown = page.tables[0][1][1] if page.tables[0][2][1] == "plain" else page.tables[0][2][1]
        assert shown.split() == ascii_controls(path).split(), path


def ascii_controls(text: str) -> str:
    """The text as `printable` shows it."""
    return text.replace("\x01", "\\x01").replace("\udc80", "\\udc80")
