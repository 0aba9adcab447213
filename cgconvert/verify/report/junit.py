"""A verification as JUnit XML, which every CI shows: a suite for each artefact, a case for a check.

Elements and their order are those of the schema Jenkins keeps (xunit-plugin, junit-10.xsd). JUnit
knows passed, failed and skipped: a check that failed is a failure; a warning is skipped with the
warning as its message, because a CI shows that unasked; all others passed, reported values among
them. There are no times: the same reports give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from cgconvert.verify.report.model import bound, number, printable, run_description

__all__ = ["as_junit"]

COUNTS = ("tests", "failures", "errors", "skipped")


def as_junit(report: Mapping[str, Any]) -> str:
    """Write the XML from the JSON object of schema 1 (see model.py)."""
    suites = [_suite(artefact, report["tool"]) for artefact in report["artefacts"]]
    totals = {key: str(sum(int(suite.attrib[key]) for suite in suites)) for key in COUNTS}
    root = Element("testsuites", {"name": "cgconvert verify", **totals})
    root.extend(suites)
    for node in root.iter():
        node.text = printable(node.text) if node.text else None
        node.attrib.update({name: printable(value) for name, value in node.attrib.items()})
    indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{tostring(root, encoding="unicode")}\n'


def _suite(artefact: Mapping[str, Any], tool: Mapping[str, str]) -> Element:
    path, checks = artefact["artefact"]["path"], artefact["checks"]
    verdicts = [check["verdict"] for check in checks]
    suite = Element("testsuite", name=f"{path}: {run_description(artefact)}")
    counts = (len(checks), verdicts.count("fail"), 0, verdicts.count("warning"))
    suite.attrib |= dict(zip(COUNTS, map(str, counts), strict=True))
    properties = SubElement(suite, "properties")
    for name, value in _properties(artefact, tool).items():
        SubElement(properties, "property", name=name, value=value)
    suite.extend(_case(check, path) for check in checks)
    return suite


def _properties(artefact: Mapping[str, Any], tool: Mapping[str, str]) -> dict[str, str]:
    """What was compared with what; names are the JSON object's, joined by dots."""
    groups = {"tool": tool} | {name: artefact[name] for name in ("source", "reference", "runtime")}
    values = {
        f"{name}.{key}": str(value)
        for name, group in groups.items()
        for key, value in group.items()
    }
    hashes = artefact["artefact"]["files"].items()
    return values | {f"artefact.sha256.{name}": sha256 for name, sha256 in hashes}


def _case(check: Mapping[str, Any], path: str) -> Element:
    """A check as a test case; values have all digits in its text and four in its message."""
    lines = [f"{check['verdict']}: {check['name']}", f"value {_all_digits(check['value'])}"]
    if check["threshold"] is not None:
        lines.append(f"bound {check['comparison']} {_all_digits(check['threshold'])}")
    text = "\n".join(filter(None, [*lines, check["detail"]]))
    case = Element("testcase", classname=path, name=check["name"])
    if check["verdict"] == "fail":
        limit = bound(check["comparison"], check["threshold"])
        summary = f"{number(check['value'])}, not {limit}" if check["value"] is not None else ""
        message = "; ".join(filter(None, [summary, check["detail"]]))
        SubElement(case, "failure", message=message, type=check["name"]).text = text
        return case
    if check["verdict"] == "warning":
        warning = f"warning: {check['detail'] or number(check['value'])}"
        SubElement(case, "skipped", message=warning)
    SubElement(case, "system-out").text = text
    return case


def _all_digits(value: float | None) -> str:
    return "-" if value is None else repr(value)
