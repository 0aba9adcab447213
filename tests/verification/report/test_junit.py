"""JUnit XML says what the JSON report says, whatever an artefact calls itself."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

from cgconvert.verification.report.model import Report
from tests.support.reports import report, written


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
            (text,) = [e.text or "" for e in cases[check["name"]] if e.text]
            value = "-" if check["value"] is None else repr(check["value"])
            assert f"value {value}\n" in f"{text}\n"
            assert (f"bound <= {check['threshold']!r}" in text) == (check["threshold"] is not None)
            assert check["detail"] in text
            outcome = {"fail": "failure", "warning": "skipped"}.get(check["verdict"])
            for tag in ("failure", "skipped"):
                assert (cases[check["name"]].find(tag) is not None) == (tag == outcome)


def test_junit_has_the_failures_and_their_artefacts(tmp_path: Path) -> None:
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
