"""Reports written out by hand, some with hostile names, and a strict reader of the HTML page."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from cgconvert.verification.report import write_reports
from cgconvert.verification.report.model import Report
from cgconvert.verification.thresholds import Check, Verdict, at_most

HOSTILE = 'out/<script src="https://evil.example/x.js">&\'"]]>\x01\udc80\n<b>.gguf'

CHECKS = (
    at_most("end_of_text", 0.0, 0),
    at_most("logits.nmse", 0.0123456789012345, 3e-3, "worse <i>than</i> & 'ever'"),
    at_most("logits.kl_mean", 1.23456789e-4, 1e-3),
    at_most("logits.kl_p99", float("nan"), 1e-2),
    at_most("logits.top1", 0.987654321, None),
    Check("padding", 0.0, 0.0, "<=", Verdict.WARNING, "padded rows win, as in the source"),
    at_most("generation", None, 0, "the context leaves no room"),
)


def report(path: str = "out/tiny.gguf", checks: tuple[Check, ...] = CHECKS) -> Report:
    return Report(
        artefact={"path": path, "format": "gguf", "type": "Q8_0", "files": {path: "ab" * 32}},
        source={"name": "tiny", "layout": "torch", "sha256": "cd" * 32},
        reference={"weights": "float16", "compute": "float32", "device": "cpu"},
        runtime={"name": "llama.cpp", "version": "0.3.36", "device": "cpu"},
        prompts={"sha256": "ef" * 32, "sequences": 2, "tokens": 5, "lengths": (3, 2)},
        texts={"sha256": "01" * 32, "count": 9},
        checks=checks,
        series={"logits.kl": [1e-5, 0.02, -1e-17, None, 3e-4]},
    )


def written(reports: list[Report], path: Path) -> str:
    write_reports(reports, path)
    return path.read_text(encoding="utf-8")


class Page(HTMLParser):
    """Refuses unbalanced markup; keeps elements, cells of tables and all text."""

    VOID = ("meta", "br", "hr", "img", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data
