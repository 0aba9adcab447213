"""A verification as plain aligned text: a table for each artefact, and one of them all."""

from __future__ import annotations

from collections.abc import Sequence

from cgconvert.verification.report.model import SUMMARY, Report, bound, number, run_description
from cgconvert.verification.thresholds import Verdict

__all__ = ["as_table", "as_text", "summary"]


def as_text(reports: Sequence[Report]) -> str:
    """Write a table for each artefact and, if there are several, a summary of them all."""
    tables = [as_table(report) for report in reports]
    return "\n".join([*tables, summary(reports)] if len(reports) > 1 else tables)


def summary(reports: Sequence[Report]) -> str:
    """Write a line for each artefact: verdict, path, type, runtime and the checks of SUMMARY."""
    rows: list[tuple[str, ...]] = [("", "artefact", "type", "runtime", *SUMMARY.values())]
    for report in reports:
        values = {check.name: check.value for check in report.checks}
        rows.append(
            (
                _word(report.verdict),
                str(report.artefact["path"]),
                f"{report.artefact['format']} {report.artefact['type']}",
                f"{report.runtime['name']} {report.runtime['version']}",
                *(number(values.get(name)) for name in SUMMARY),
            )
        )
    return "\n".join(_aligned(rows)) + "\n"


def as_table(report: Report) -> str:
    """Write what was compared, a line for each check, and the verdict in the last line."""
    reference = report.reference
    rows = [
        (
            _word(check.verdict),
            check.name,
            number(check.value),
            bound(check.comparison, check.threshold),
            check.detail,
        )
        for check in report.checks
    ]
    lines = [
        f"{report.artefact['path']}: {run_description(vars(report))}",
        f"reference: {report.source['name']}, weights {reference['weights']}, computed in "
        f"{reference['compute']} on {reference['device']}",
        "",
        *_aligned([("", "check", "value", "bound", ""), *rows]),
        "",
        _ending(report),
    ]
    return "\n".join(lines) + "\n"


def _word(verdict: Verdict) -> str:
    """A verdict as a word; failures in capitals."""
    return verdict.upper() if verdict == Verdict.FAIL else str(verdict)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Join the cells of each row to a line, padded to the width of their column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _ending(report: Report) -> str:
    """Write the verdict: the checks that failed, or how many passed and which are warnings."""
    failed = [check.name for check in report.checks if check.verdict == Verdict.FAIL]
    if failed:
        return f"FAILED: {', '.join(failed)}"
    judged = [check for check in report.checks if check.verdict != Verdict.INFO]
    ending = f"passed: {len(judged)} checks"
    warnings = [check.name for check in judged if check.verdict == Verdict.WARNING]
    return f"{ending}, warnings: {', '.join(warnings)}" if warnings else ending
