"""A verification as JUnit XML, which every CI shows: a suite for each artefact, a case for a check.

Elements and their order are those of Jenkins's schema (xunit-plugin, junit-10.xsd). JUnit has three
outcomes: passed, failed and skipped. A check that failed is a failure. A warning is a skipped case
with the warning as its message, because a CI shows skipped cases without being asked. All others
have passed, values that are only reported among them. No times are written, so the same reports
give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from cgconvert.verification.report.advice import advice
from cgconvert.verification.report.model import bound, number, run_description, xml_safe

__all__ = ["as_junit"]

COUNTS = ("tests", "failures", "errors", "skipped")
"""The attributes that count the cases of a suite; `errors`, tests that broke off, are always 0."""


def as_junit(report: Mapping[str, Any]) -> str:
    """Write the XML from the JSON object (see model.py)."""
    suites = [_suite(artefact, report["tool"]) for artefact in report["artefacts"]]
    totals = {key: str(sum(int(suite.attrib[key]) for suite in suites)) for key in COUNTS}
    root = Element("testsuites", {"name": "cgconvert verify", **totals})
    root.extend(suites)
    for node in root.iter():
        node.text = xml_safe(node.text) if node.text else None
        node.attrib.update({name: xml_safe(value) for name, value in node.attrib.items()})
    indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{tostring(root, encoding="unicode")}\n'


def _suite(report: Mapping[str, Any], tool: Mapping[str, str]) -> Element:
    """Build the suite of one artefact, `report` being its entry of `artefacts`.

    `tool` is the name and version of the program.
    """
    path, checks = report["artefact"]["path"], report["checks"]
    verdicts = [check["verdict"] for check in checks]
    suite = Element("testsuite", name=f"{path}: {run_description(report)}")
    counts = (len(checks), verdicts.count("fail"), 0, verdicts.count("warning"))
    suite.attrib |= dict(zip(COUNTS, map(str, counts), strict=True))
    properties = SubElement(suite, "properties")
    for name, value in _properties(report, tool).items():
        SubElement(properties, "property", name=name, value=value)
    failed = [check["name"] for check in checks if check["verdict"] == "fail"]
    suite.extend(_case(check, path, failed) for check in checks)
    return suite


def _properties(report: Mapping[str, Any], tool: Mapping[str, str]) -> dict[str, str]:
    """Say what was compared with what; the names are keys of the JSON object, joined by dots."""
    groups = {"tool": tool} | {
        name: report[name] for name in ("source", "reference", "cache", "runtime")
    }
    values = {
        f"{name}.{key}": ", ".join(value) if isinstance(value, list | tuple) else str(value)
        for name, group in groups.items()
        for key, value in group.items()
    }
    values |= {name: report[name] for name in ("sentence", "not_compared") if report[name]}
    hashes = report["artefact"]["files"].items()
    return values | {f"artefact.sha256.{name}": sha256 for name, sha256 in hashes}


def _case(check: Mapping[str, Any], path: str, failed: Sequence[str]) -> Element:
    """Build the test case of a check of the artefact at `path`, whose failed checks are `failed`.

    Numbers have all digits in its text, and four in its message.
    """
    lines = [f"{check['verdict']}: {check['name']}", f"value {_all_digits(check['value'])}"]
    if check["threshold"] is not None:
        lines.append(f"bound {check['comparison']} {_all_digits(check['threshold'])}")
    if check["minimum"] is not None:
        lines.append(f"bound >= {_all_digits(check['minimum'])}")
    text = "\n".join(filter(None, [*lines, check["detail"]]))
    case = Element("testcase", classname=path, name=check["name"])
    if check["verdict"] == "fail":
        limit = bound(check["comparison"], check["threshold"], check["minimum"])
        summary = f"{number(check['value'])}, not {limit}" if check["value"] is not None else ""
        message = "; ".join(filter(None, [summary, check["detail"]]))
        text += f"\n{advice(check['name'], failed)}"
        SubElement(case, "failure", message=message, type=check["name"]).text = text
        return case
    if check["verdict"] == "warning":
        warning = f"warning: {check['detail'] or number(check['value'])}"
        SubElement(case, "skipped", message=warning)
    SubElement(case, "system-out").text = text
    return case


def _all_digits(value: float | None) -> str:
    """Write a number so that it can be read back exactly; "-" for None."""
    return "-" if value is None else repr(value)
