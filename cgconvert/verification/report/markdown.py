"""A verification as Markdown: what a job of GitHub Actions or a merge request shows of it.

The summary is what a person reads: a sentence, a line for each artefact, the checks that failed or
warn. All checks follow, folded away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from cgconvert.verification.report.advice import advice
from cgconvert.verification.report.model import (
    SUMMARY,
    bound,
    cache_description,
    number,
    run_description,
    xml_safe,
)

__all__ = ["as_markdown"]

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~&!$@])")
"""Characters with a meaning in a line of GitHub's or GitLab's Markdown."""

SIGNS = {"pass": "✅", "info": "", "warning": "⚠️", "fail": "❌"}


def as_markdown(report: Mapping[str, Any]) -> str:
    """Write the Markdown from the JSON object (see model.py)."""
    artefacts = sorted(report["artefacts"], key=lambda entry: _rank(entry["verdict"]))
    heads = ("", "artefact", "type", "runtime", *SUMMARY.values())
    lines = [
        f"## {SIGNS[report['verdict']]} cgconvert verify: {report['verdict']}",
        "",
        _text(report["sentence"]),
        "",
        *_table(heads, map(_overview, artefacts)),
    ]
    for artefact in artefacts:
        lines += ["", *_section(artefact)]
    tool = report["tool"]
    return "\n".join([*lines, "", f"{tool['name']} {tool['version']}", ""])


def _overview(artefact: Mapping[str, Any]) -> Sequence[str]:
    values = {check["name"]: check["value"] for check in artefact["checks"]}
    files, runtime = artefact["artefact"], artefact["runtime"]
    return (
        SIGNS[artefact["verdict"]],
        files["path"],
        f"{files['format']} {files['type']}",
        f"{runtime['name']} {runtime['version']}",
        *(number(values.get(name)) for name in SUMMARY),
    )


def _section(artefact: Mapping[str, Any]) -> list[str]:
    """What was compared, the checks that failed or warn with advice, then all checks, folded."""
    checks = sorted(artefact["checks"], key=lambda check: _rank(check["verdict"]))
    attention = [check for check in checks if check["verdict"] in ("fail", "warning")]
    lines = [f"### {_text(artefact['artefact']['path'])}", "", _text(artefact["sentence"]), ""]
    for check in attention:
        advised = f"; {advice(check['name'])}" if check["verdict"] == "fail" else ""
        value = number(check["value"]) + (f" (bound {_bound(check)})" if _bound(check) else "")
        detail = f": {check['detail']}" if check["detail"] else ""
        lines.append(
            f"- {SIGNS[check['verdict']]} **{_text(check['name'])}** "
            f"{_text(f'{value}{detail}{advised}')}"
        )
    if attention:
        lines.append("")
    rows = (
        (SIGNS[check["verdict"]], check["name"], number(check["value"]), _bound(check),
         check["detail"])
        for check in checks
    )  # fmt: skip
    return [
        *lines,
        f"<details><summary>{len(checks)} checks: {escape(run_description(artefact))}; "
        f"{cache_description(artefact)}</summary>",
        "",
        *_table(("", "check", "value", "bound", "detail"), rows),
        "",
        "</details>",
    ]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
        *(f"| {' | '.join(map(_text, row))} |" for row in rows),
    ]


def _bound(check: Mapping[str, Any]) -> str:
    return bound(check["comparison"], check["threshold"], check.get("minimum"))


def _rank(verdict: str) -> int:
    return ("fail", "warning").index(verdict) if verdict in ("fail", "warning") else 2


def _text(text: str) -> str:
    """Escape text for one line of Markdown, so that it is shown as it is."""
    line = xml_safe(" ".join(text.split()))
    return _MARKUP.sub(r"\\\1", line)
