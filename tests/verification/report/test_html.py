"""The HTML page says what the JSON report says, whatever an artefact calls itself."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cgconvert.formats.gguf import writer as gguf
from cgconvert.verification.report.advice import advice
from cgconvert.verification.report.model import Report, as_json_object, rounded
from cgconvert.verification.thresholds import Verdict
from cgconvert.verification.verify import verify
from cgconvert.write.execute import execute
from tests.support.reports import CHECKS, Page, report, written
from tests.support.tampering import checkpoint


def worst_first(checks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The order of the page: failures, warnings, passed, only reported."""
    return sorted(checks, key=lambda c: ("fail", "warning", "pass", "info").index(c["verdict"]))


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


def test_the_page_has_the_numbers_of_the_json(reports: list[Report], tmp_path: Path) -> None:
    whole = json.loads(written(reports, tmp_path / "verdict.json"))
    page = Page(written(reports, tmp_path / "verdict.html"))
    overview, *tables = page.tables
    assert [row[0] for row in overview[1:]] == ["failed", "passed"]
    assert page.words.index("failed") < page.words.index("rel. error")  # the verdict first
    words = {"pass": "passed", "fail": "failed"}
    for table, artefact in zip(tables, whole["artefacts"], strict=True):
        names = [check["name"] for check in artefact["checks"] if check["verdict"] == "fail"]
        for row, check in zip(table[1:], worst_first(artefact["checks"]), strict=True):
            verdict = words.get(check["verdict"], check["verdict"])
            assert row[:2] == [verdict, check["name"]]
            failed = check["verdict"] == "fail"
            assert row[4] == check["detail"] + (advice(check["name"], names) if failed else "")
            if check["value"] is not None:
                assert float(row[2]) == pytest.approx(check["value"], rel=1e-3)
        for provenance in (artefact["source"]["sha256"], *artefact["artefact"]["files"].values()):
            assert provenance in page.words
    exact = [float(a["value"] or "nan") for tag, a in page.elements if tag == "data"]
    kept = [
        check[key]
        for artefact in whole["artefacts"]
        for check in worst_first(artefact["checks"])
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


def test_the_sentence_comes_before_the_tables(tmp_path: Path) -> None:
    reports = [report("good.gguf", CHECKS[:1]), report()]
    page = Page(written(reports, tmp_path / "verdict.html"))
    sentences = [a["class"] for tag, a in page.elements if "sentence" in (a.get("class") or "")]
    assert sentences == ["sentence fail", "sentence fail", "sentence pass"]  # all, then each
    whole = as_json_object(reports)["sentence"]
    assert page.words.index(whole) < page.words.index("artefact")
    assert [row[1] for row in page.tables[0][1:]] == ["out/tiny.gguf", "good.gguf"]
    single = Page(written(reports[:1], tmp_path / "verdict.html"))
    assert single.words.count(reports[0].sentence) == 1


def test_on_a_telephone_no_element_is_wider_than_the_page(tmp_path: Path) -> None:
    """Tables scroll in their own box or become cards; drawings scroll in their figure."""
    text = written([report()], tmp_path / "verdict.html")
    style = text[text.index("<style>") : text.index("</style>")]
    narrow = style[style.index("@media (max-width: 44rem)") :]
    assert 'name="viewport" content="width=device-width' in text
    for tables in re.findall(r".{24}<table", text):
        assert tables.endswith('<div class="scroll"><table')
    assert ".scroll { overflow-x: auto; }" in style
    assert "figure { overflow-x: auto; }" in narrow
    assert "dl { grid-template-columns: 1fr; }" in narrow
    assert ".cards, .cards tbody, .cards tr { display: block; }" in narrow
    labels = {a["data-label"] for tag, a in Page(text).elements if a.get("data-label")}
    assert {"value", "bound", "runtime", "type"} <= labels  # the heads of columns are hidden there


def test_the_same_reports_give_the_same_bytes(reports: list[Report], tmp_path: Path) -> None:
    for suffix in (".xml", ".html", ".json"):
        first, again = tmp_path / f"first{suffix}", tmp_path / f"again{suffix}"
        assert written(reports, first) == written(reports, again)


def test_without_a_series_there_is_no_plot(tmp_path: Path) -> None:
    assert "<svg" in written([report()], tmp_path / "verdict.html")
    assert "<svg" not in written([replace(report(), series={})], tmp_path / "verdict.html")


def test_a_series_keeps_three_digits_and_null_for_what_is_not_finite() -> None:
    assert rounded([0.123456, 1e-13 / 3, float("inf"), float("nan"), 0]) == [
        0.123, 3.33e-14, None, None, 0.0,
    ]  # fmt: skip


def test_the_series_of_a_real_artefact_gives_the_reported_measures(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    source = checkpoint(tmp_path / "source")
    plan = gguf.plan(source, tmp_path / "tiny.gguf", type="Q8_0")
    execute(plan)
    result = verify(plan.output, plan.format, plan.type, source, "cpu", new_tokens=1, threads=1)
    kl = [value for value in result.series["logits.kl"] if value is not None]
    assert len(kl) == result.prompts["tokens"] == sum(result.prompts["lengths"])
    checks = {check.name: check for check in result.checks}
    assert np.mean(kl) == pytest.approx(checks["logits.kl_mean"].value, rel=0.01)
    assert np.percentile(kl, 99) == pytest.approx(checks["logits.kl_p99"].value, rel=0.01)
    assert f"worst {max(kl):.3g} " in checks["logits.kl_p99"].detail
    assert json.dumps(as_json_object([result])["artefacts"][0]["series"]["logits.kl"])
    page = Page(written([result], tmp_path / "verdict.html"))
    (path,) = [a["d"] for tag, a in page.elements if tag == "path" and a["class"] == "points"]
    assert path is not None
    assert path.count("M") == len(kl)
