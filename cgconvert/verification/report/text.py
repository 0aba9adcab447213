"""A verification as plain text: a table for each artefact, one of them all, and the sentences.

In a file or a pipe a check is one line, however long. In a terminal no line is wider than the
terminal: what does not fit is continued on the next line, and nothing is cut.
"""

from __future__ import annotations

from collections.abc import Sequence

from cgconvert.escaping import printable
from cgconvert.io.terminal import wrapped
from cgconvert.verification.report.advice import advice
from cgconvert.verification.report.model import (
    SUMMARY,
    Report,
    bound,
    cache_description,
    number,
    run_description,
    total_sentence,
    worst_checks_first,
    worst_reports_first,
)
from cgconvert.verification.thresholds import Check, Verdict

__all__ = ["as_table", "as_text", "overview", "summary", "table", "wrapped"]

INDENT = " " * 9
"""What stands before the continuation of a check: the width of a verdict and two spaces."""

LEAST_DETAIL = 40
"""The columns that a detail needs beside a check; in fewer it stands below."""


def as_text(reports: Sequence[Report], width: int | None = None) -> str:
    """Write a table for each artefact and, if there are several, a summary of them all.

    `width` is the terminal's number of columns; None for lines of any length.
    """
    tables = [as_table(report, width) for report in reports]
    return "\n".join([*tables, summary(reports, width)] if len(reports) > 1 else tables)


def summary(reports: Sequence[Report], width: int | None = None) -> str:
    """Write a line for each artefact, the failed ones first, and a sentence on all of them."""
    sentence = wrapped(printable(total_sentence(reports)), width)
    return "\n".join([overview(reports, width), *sentence]) + "\n"


def overview(reports: Sequence[Report], width: int | None = None) -> str:
    """Write a line for each artefact, the failed ones first."""
    rows: list[tuple[str, ...]] = [("", "artefact", "type", "runtime", *SUMMARY.values())]
    for report in worst_reports_first([report.printable() for report in reports]):
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
    lines = _aligned(rows)
    if width is not None and max(map(len, lines)) > width:
        lines = [line for row in rows[1:] for line in _stacked(row, rows[0], width)]
    return "\n".join(lines) + "\n"


def as_table(report: Report, width: int | None = None) -> str:
    """Write what was compared, the checks with the failed ones first, and the conclusion."""
    return "\n".join([table(report, width), *wrapped(printable(report.sentence), width)]) + "\n"


def table(report: Report, width: int | None = None) -> str:
    """Write what was compared, the checks with the failed ones first, and their number."""
    report = report.printable()
    reference, checks = report.reference, worst_checks_first(report.checks)
    heads = [
        f"{report.artefact['path']}: {run_description(vars(report))}",
        f"reference: {report.source['name']}, weights {reference['weights']}, computed in "
        f"{reference['compute']} on {reference['device']}; {cache_description(vars(report))}",
    ]
    rows = [("", "check", "value", "bound"), *map(_cells, checks)]
    cells = _aligned(rows, strip=False)
    used = len(cells[0]) + 2
    lines = [line for head in heads for line in wrapped(head, width)]
    lines += ["", *([] if width is not None and used > width else [cells[0].rstrip()])]
    failed = [check.name for check in checks if check.verdict == Verdict.FAIL]
    for row, line, check in zip(rows[1:], cells[1:], checks, strict=True):
        lines += _check_lines(row, line, check, width, failed)
    lines += ["", *wrapped(_counts(checks), width)]
    return "\n".join(lines) + "\n"


def _check_lines(
    row: tuple[str, ...], cells: str, check: Check, width: int | None, failed: Sequence[str]
) -> list[str]:
    """Write one check: its cells, its detail beside or below them, and what to do if it failed.

    `failed` are the names of all failed checks.
    """
    room = None if width is None else width - len(cells) - 2
    if room is None or room >= LEAST_DETAIL:
        first, *rest = wrapped(check.detail, room) or [""]
        lines = [f"{cells}  {first}".rstrip()]
        lines += [" " * (len(cells) + 2) + text for text in rest]
    elif width is not None and len(cells) <= width:
        lines = [cells.rstrip(), *wrapped(check.detail, width, INDENT)]
    else:
        head, values = f"{row[0]:<7}  {row[1]}", " ".join(filter(None, row[2:]))
        is_short = width is not None and len(head) + 2 + len(values) <= width
        texts = [check.detail] if is_short else [values, check.detail]
        lines = [f"{head}  {values}" if is_short else head]
        lines += wrapped("; ".join(filter(None, texts)), width, INDENT)
    if check.verdict == Verdict.FAIL:
        lines += wrapped(f"-> {advice(check.name, failed)}", width, INDENT)
    return lines


def _cells(check: Check) -> tuple[str, ...]:
    """The verdict, name, value and bound of a check."""
    return (
        _word(check.verdict),
        check.name,
        number(check.value),
        bound(check.comparison, check.threshold, check.minimum),
    )


def _stacked(row: tuple[str, ...], heads: tuple[str, ...], width: int) -> list[str]:
    """Write an artefact of the summary in as many lines as it needs."""
    measured = [
        f"{head} {value}" for head, value in zip(heads[4:], row[4:], strict=True) if value != "-"
    ]
    text = ", ".join([f"{row[2]} in {row[3]}", *measured])
    first = wrapped(f"{row[0]:<7}  {row[1]}", width)
    return [*first, *wrapped(text, width, INDENT)]


def _word(verdict: Verdict) -> str:
    """A verdict as a word; failures in capitals."""
    return verdict.upper() if verdict == Verdict.FAIL else str(verdict)


def _aligned(rows: Sequence[tuple[str, ...]], *, strip: bool = True) -> list[str]:
    """Join the cells of each row to a line, padded to the width of their column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[0] = max(widths[0], len(INDENT) - 2)
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return [line.rstrip() for line in lines] if strip else lines


def _counts(checks: Sequence[Check]) -> str:
    """Count the checks by verdict: "27 checks: 1 failed, 1 with a warning, 25 passed"."""
    judged = [check.verdict for check in checks if check.verdict != Verdict.INFO]
    counts = {
        "failed": judged.count(Verdict.FAIL),
        "with a warning": judged.count(Verdict.WARNING),
        "passed": judged.count(Verdict.PASS),
    }
    return f"{len(judged)} checks: " + ", ".join(f"{n} {word}" for word, n in counts.items() if n)
