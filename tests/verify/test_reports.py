"""JUnit and HTML say what the JSON report says, whatever an artefact calls itself."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from cgconvert.formats.gguf import writer as gguf
from cgconvert.verify.report import write_reports
from cgconvert.verify.report.model import Report, as_json_object, rounded
from cgconvert.verify.report.plots import (
    KL_HEIGHT,
    KL_TOP,
    WIDTH,
    Scale,
    kl_plot,
    positions_per_column,
)
from cgconvert.verify.verdict import Check, Verdict, at_most
from cgconvert.verify.verify import verify
from cgconvert.write.execute import execute
from tests.support.tampering import checkpoint

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


@pytest.fixture(params=["out/tiny.gguf", HOSTILE])
def reports(request: pytest.FixtureRequest) -> list[Report]:
    passing = tuple(c for c in CHECKS if c.verdict in (Verdict.PASS, Verdict.INFO))
    return [report(request.param), report("out/other.gguf", passing)]


# JUnit.


def test_junit_counts_are_right(reports: list[Report], tmp_path: Path) -> None:
    root = ElementTree.fromstring(written(reports, tmp_path / "verdict.xml"))
    assert root.tag == "testsuites"
    suites = root.findall("testsuite")
    assert len(suites) == 2
    for element in (root, *suites):
        cases = list(element.iter("testcase"))
        assert int(element.attrib["tests"]) == len(cases)
        assert int(element.attrib["failures"]) == len(list(element.iter("failure")))
        assert int(element.attrib["skipped"]) == len(list(element.iter("skipped")))
        assert int(element.attrib["errors"]) == 0
    assert [suite.attrib["failures"] for suite in suites] == ["2", "0"]
    assert [suite.attrib["skipped"] for suite in suites] == ["1", "0"]


def test_a_case_is_a_check_of_the_json(reports: list[Report], tmp_path: Path) -> None:
    whole = json.loads(written(reports, tmp_path / "verdict.json"))
    root = ElementTree.fromstring(written(reports, tmp_path / "verdict.xml"))
    for suite, artefact in zip(root, whole["artefacts"], strict=True):
        assert [child.tag for child in suite][:2] == ["properties", "testcase"]
        cases = {case.attrib["name"]: case for case in suite.findall("testcase")}
        assert list(cases) == [check["name"] for check in artefact["checks"]]
        for check in artefact["checks"]:
            (said,) = [e.text or "" for e in cases[check["name"]] if e.text]
            value = "-" if check["value"] is None else repr(check["value"])
            assert f"value {value}\n" in f"{said}\n"
            assert (f"bound <= {check['threshold']!r}" in said) == (check["threshold"] is not None)
            assert check["detail"] in said
            outcome = {"fail": "failure", "warning": "skipped"}.get(check["verdict"])
            for tag in ("failure", "skipped"):
                assert (cases[check["name"]].find(tag) is not None) == (tag == outcome)


def test_junit_says_what_failed_and_where_it_is_from(tmp_path: Path) -> None:
    root = ElementTree.fromstring(written([report()], tmp_path / "verdict.xml"))
    failure = root.find(".//testcase[@name='logits.nmse']/failure")
    assert failure is not None
    assert failure.attrib["message"] == "0.01235, not <= 0.003; worse <i>than</i> & 'ever'"
    skipped = root.find(".//testcase[@name='padding']/skipped")
    assert skipped is not None
    assert skipped.attrib["message"] == "warning: padded rows win, as in the source"
    properties = {p.attrib["name"]: p.attrib["value"] for p in root.iter("property")}
    assert properties["tool.name"] == "cgconvert"
    assert properties["source.sha256"] == "cd" * 32
    assert properties["reference.weights"] == "float16"
    assert properties["runtime.version"] == "0.3.36"
    assert properties["artefact.sha256.out/tiny.gguf"] == "ab" * 32


# HTML.


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


def test_the_page_is_balanced_and_loads_nothing(reports: list[Report], tmp_path: Path) -> None:
    text = written(reports, tmp_path / "verdict.html")
    page = Page(text)
    loading = {"src", "srcset", "action", "data", "poster", "background", "xlink:href"}
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "link", "base", "img", "b", "i")
        assert not loading & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
        assert (attributes.get("href") or "#").startswith("#")
    (style,) = [w for w in page.words if "--ground" in w]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert not re.search(r"https?://(?!evil\.example)", text)
    assert [a for tag, a in page.elements if tag == "html"] == [{"lang": "en"}]
    anchors = {a["href"] for tag, a in page.elements if tag == "a"}
    assert anchors == {f"#{a['id']}" for tag, a in page.elements if tag == "article"}


def test_the_page_says_what_the_json_says(reports: list[Report], tmp_path: Path) -> None:
    whole = json.loads(written(reports, tmp_path / "verdict.json"))
    page = Page(written(reports, tmp_path / "verdict.html"))
    overview, *tables = page.tables
    assert [row[0] for row in overview[1:]] == ["failed", "passed"]
    assert page.words.index("failed") < page.words.index("rel. error")  # the verdict first
    words = {"pass": "passed", "fail": "failed"}
    for table, artefact in zip(tables, whole["artefacts"], strict=True):
        for row, check in zip(table[1:], artefact["checks"], strict=True):
            verdict = words.get(check["verdict"], check["verdict"])
            assert row[:2] == [verdict, check["name"]]
            assert row[4] == check["detail"]
            if check["value"] is not None:
                assert float(row[2]) == pytest.approx(check["value"], rel=1e-3)
        for provenance in (artefact["source"]["sha256"], *artefact["artefact"]["files"].values()):
            assert provenance in page.words
    exact = [float(a["value"] or "nan") for tag, a in page.elements if tag == "data"]
    kept = [
        check[key]
        for artefact in whole["artefacts"]
        for check in artefact["checks"]
        for key in ("value", "threshold")
        if check[key] is not None
    ]
    assert exact[-len(kept) :] == kept


def test_the_opening_names_what_failed_and_counts_warnings(tmp_path: Path) -> None:
    warned = report("out/warned.gguf", tuple(c for c in CHECKS if c.verdict != Verdict.FAIL))
    text = written([warned, report()], tmp_path / "verdict.html")
    assert "1 of 2 artefacts passed; failed: out/tiny.gguf; with warnings: 1." in text
    text = written([warned], tmp_path / "verdict.html")
    assert '<h1>Verification <span class="verdict warning">passed with warnings</span></h1>' in text


def test_the_same_reports_give_the_same_bytes(reports: list[Report], tmp_path: Path) -> None:
    for suffix in (".xml", ".html", ".json"):
        first, again = tmp_path / f"first{suffix}", tmp_path / f"again{suffix}"
        assert written(reports, first) == written(reports, again)


# The plot.


def points(plot: ElementTree.Element, kind: str) -> list[tuple[float, float]]:
    paths = [e.attrib["d"] for e in plot.iter("path") if e.attrib["class"] == kind]
    return [(float(x), float(y)) for d in paths for x, y in re.findall(r"M(\S+) (\S+?)h0", d)]


def test_every_position_is_drawn_once_and_those_above_the_bound_apart() -> None:
    values = [1e-5, 0.02, -1e-17, None, 3e-4, 0.01]
    plot = kl_plot(values, {"bound": 0.01}, [("one", 4), ("two", 2)], 0.01)
    inside, above, broken = (points(plot, f"points{k}") for k in ("", " above", " broken"))
    assert (len(inside), len(above), len(broken)) == (4, 1, 1)
    assert broken[0][1] == KL_TOP
    for x, y in [*inside, *above]:
        assert 0 < x < WIDTH
        assert KL_TOP <= y < KL_HEIGHT
    assert inside[0][1] > inside[2][1] > inside[3][1] > above[0][1]  # larger is higher
    (line,) = [e.attrib["d"] for e in plot.iter("path") if e.attrib["class"] == "line"]
    assert f" {inside[3][1]}H" in line  # what equals the bound lies on it


def test_of_thousands_of_positions_each_column_shows_its_range_and_mean() -> None:
    values: list[float | None] = [1e-4] * 5000
    values[77:80] = [0.5, 1e-6, None]
    plot = kl_plot(values, {"bound": 0.01}, [("prompt 1", 1000), ("mine.txt", 4000)], 0.01)
    assert (positions_per_column(5000), positions_per_column(1600)) == (13, 1)
    scale = Scale(count=5000, low=-6, high=0, top=KL_TOP, bottom=240)
    drawn = points(plot, "points")
    assert len(drawn) == 385
    x, y = scale.x(6.5 * 13), scale.y((1e-6 + 11 * 1e-4) / 12)  # positions 79 to 91, 80 missing
    assert drawn[6] == (x, y)
    spread = next(e.attrib["d"] for e in plot.iter("path") if e.attrib["class"] == "spread")
    assert f"M{x} {scale.y(1e-6)}V{scale.y(1e-4)}" in spread
    assert points(plot, "points above") == [(scale.x(77.5), scale.y(0.5))]
    assert points(plot, "points broken") == [(scale.x(79.5), KL_TOP)]
    assert {"prompt 1", "mine.txt"} <= {e.text for e in plot.iter("text")}


def test_a_decade_is_a_decade_everywhere() -> None:
    scale = Scale(count=10, low=-8, high=0, top=22, bottom=240)
    steps = np.diff([scale.y(10.0**power) for power in range(-8, 1)])
    assert np.allclose(steps, steps[0], atol=0.11)
    assert scale.y(0.0) == scale.y(1e-16) > scale.y(1e-8)


@pytest.mark.parametrize("values", [[0.0], [None], [1e-3] * 3, [1e-16, 12.0]])
def test_series_without_a_range_can_be_drawn(values: list[float | None]) -> None:
    plot = kl_plot(values, {}, [("one", len(values))], None)
    drawn = points(plot, "points") + points(plot, "points broken")
    assert len(drawn) == len(values)


def test_no_series_no_plot(tmp_path: Path) -> None:
    assert "<svg" in written([report()], tmp_path / "verdict.html")
    assert "<svg" not in written([replace(report(), series={})], tmp_path / "verdict.html")


def test_rounded() -> None:
    assert rounded([0.123456, 1e-13 / 3, float("inf"), float("nan"), 0]) == [
        0.123, 3.33e-14, None, None, 0.0,
    ]  # fmt: skip


def test_the_series_of_a_real_artefact(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    source = checkpoint(tmp_path / "source")
    plan = gguf.plan(source, tmp_path / "tiny.gguf", type="Q8_0")
    execute(plan)
    found = verify(plan.output, plan.format, plan.type, source, "cpu", new_tokens=1, threads=1)
    kl = [value for value in found.series["logits.kl"] if value is not None]
    assert len(kl) == found.prompts["tokens"] == sum(found.prompts["lengths"])
    checks = {check.name: check for check in found.checks}
    assert np.mean(kl) == pytest.approx(checks["logits.kl_mean"].value, rel=0.01)
    assert np.percentile(kl, 99) == pytest.approx(checks["logits.kl_p99"].value, rel=0.01)
    assert f"worst {max(kl):.3g} " in checks["logits.kl_p99"].detail
    assert json.dumps(as_json_object([found])["artefacts"][0]["series"]["logits.kl"])
    page = Page(written([found], tmp_path / "verdict.html"))
    (path,) = [a["d"] for tag, a in page.elements if tag == "path" and a["class"] == "points"]
    assert path is not None
    assert path.count("M") == len(kl)
