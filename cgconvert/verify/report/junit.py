"""A verification as JUnit XML, which every CI shows: a suite an artefact, a case a check.

Elements and their order are those of the schema Jenkins keeps (xunit-plugin, junit-10.xsd). JUnit
knows passed, failed and skipped: a check that failed is a failure, a warning is skipped with the
warning as its message, because that is what a CI shows unasked, and all others passed, reported
values among them. There are no times: the same reports give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element, indent, tostring

from cgconvert.verify.report.markup import element
from cgconvert.verify.report.words import bound, number, ran

__all__ = ["as_junit"]


def as_junit(whole: Mapping[str, Any]) -> str:
    """From the JSON object of schema 1 (see report.py)."""
    suites = [_suite(artefact, whole["tool"]) for artefact in whole["artefacts"]]
    totals = {key: sum(int(suite.attrib[key]) for suite in suites) for key in _COUNTED}
    root = element("testsuites", *suites, name="cgconvert verify", **totals)
    indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{tostring(root, encoding="unicode")}\n'


_COUNTED = ("tests", "failures", "errors", "skipped")


def _suite(artefact: Mapping[str, Any], tool: Mapping[str, str]) -> Element:
    path, checks = artefact["artefact"]["path"], artefact["checks"]
    verdicts = [check["verdict"] for check in checks]
    return element(
        "testsuite",
        element("properties", *_properties(artefact, tool)),
        *(_case(check, path) for check in checks),
        name=f"{path}: {ran(artefact)}",
        tests=len(checks),
        failures=verdicts.count("fail"),
        errors=0,
        skipped=verdicts.count("warning"),
    )


def _properties(artefact: Mapping[str, Any], tool: Mapping[str, str]) -> list[Element]:
    """What was compared with what; names are the JSON object's, joined by dots."""
    groups = {"tool": tool} | {
        group: artefact[group] for group in ("source", "reference", "runtime")
    }
    found = {f"{group}.{key}": value for group, of in groups.items() for key, value in of.items()}
    files = artefact["artefact"]["files"]
    found |= {f"artefact.sha256.{name}": sha256 for name, sha256 in files.items()}
    return [element("property", name=name, value=value) for name, value in found.items()]


def _case(check: Mapping[str, Any], path: str) -> Element:
    """A check. Values in the texts have all their digits, those in messages four."""
    limit = bound(check["comparison"], check["threshold"])
    said = f"{number(check['value'])}, not {limit}" if check["value"] is not None else ""
    message = "; ".join(filter(None, [said, check["detail"]]))
    lines = [f"{check['verdict']}: {check['name']}", f"value {_exact(check['value'])}"]
    if check["threshold"] is not None:
        lines.append(f"bound {check['comparison']} {_exact(check['threshold'])}")
    text = "\n".join(filter(None, [*lines, check["detail"]]))
    case = element("testcase", classname=path, name=check["name"])
    if check["verdict"] == "fail":
        case.append(element("failure", text, message=message, type=check["name"]))
        return case
    if check["verdict"] == "warning":
        warning = f"warning: {check['detail'] or number(check['value'])}"
        case.append(element("skipped", message=warning))
    case.append(element("system-out", text))
    return case


def _exact(value: float | None) -> str:
    return "-" if value is None else repr(value)
