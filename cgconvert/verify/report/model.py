"""What a verification says: a table for a person, JSON for a machine, JUnit and HTML for a CI.

JUnit and HTML are drawn from the JSON object alone, so that they cannot say anything else. It is,
in schema 1 (a key is never renamed or given another meaning without a new number; new keys may
come):

    schema      1
    tool        {name, version}
    verdict     pass, warning or fail: the worst of all
    artefacts   one object for each artefact:
      artefact    {path, format, type, files: {relative path: sha256}}
      source      {name, layout, sha256} of the checkpoint it is compared with
      reference   {weights, compute, device}: torch's names of the types the source's numbers had
                  (float16: after rounding, where they were wider) and were computed in
      runtime     {name, version, device}
      prompts     {sha256, sequences, tokens, lengths, texts}: sha256 of the prompts' texts;
                  sequences and tokens behind the logits, in all and of each sequence. Those of
                  the texts given come after the prompts', texts says which: [{name, sha256,
                  sequences, tokens}], sha256 of the file's bytes (of "stdlib", of all its files)
      texts       {sha256, count} of the texts the tokenizers were compared on
      checks      [{name, value, threshold, comparison, verdict, detail}]: value is null where there
                  was nothing to measure or it is not finite, threshold null where none is demanded;
                  comparison is "<=" or ">="; verdict is pass, info, warning or fail
      series      {name: [value or null]} of three significant digits: "logits.kl" is KL(reference
                  || artefact) in nats at every position, prompts one after the other; null where
                  it is not finite; no such key where the logits could not be compared
      tensors     [{name, type, size, nonfinite, differing, relative_rms, worst}] in the layout's
                  order, those that are there in their shape: type as stored; nonfinite and
                  differing count values (see weights.finite, weights.equal); relative_rms is
                  ||stored - source|| / ||source||; worst is a quantized tensor's largest error in
                  bounds of its type (see weights.error), null for others; not finite is null
      verdict     pass, warning or fail
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cgconvert.errors import OutputError, UsageError
from cgconvert.io.whole_file import write_atomic
from cgconvert.verify.report.html import as_html
from cgconvert.verify.report.junit import as_junit
from cgconvert.verify.report.words import SUMMARY, bound, number, ran
from cgconvert.verify.verdict import Check, Verdict, overall
from cgconvert.verify.weights import TensorError
from cgconvert.version import __version__

__all__ = [
    "SCHEMA",
    "WRITERS",
    "Report",
    "as_json",
    "as_table",
    "as_text",
    "as_whole",
    "check_suffix",
    "rounded",
    "summary",
    "write_reports",
]

SCHEMA = 1


@dataclass(frozen=True)
class Report:
    """See the module's text for what each mapping holds."""

    artefact: Mapping[str, Any]
    source: Mapping[str, Any]
    reference: Mapping[str, str]
    runtime: Mapping[str, str]
    prompts: Mapping[str, Any]
    texts: Mapping[str, Any]
    checks: tuple[Check, ...]
    series: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    tensors: tuple[TensorError, ...] = ()

    @property
    def verdict(self) -> Verdict:
        return overall(self.checks)

    @property
    def passed(self) -> bool:
        """Whether no check failed; a warning is not a failure."""
        return self.verdict != Verdict.FAIL

    def as_dict(self) -> dict[str, Any]:
        return {
            **{k: v for k, v in asdict(self).items() if k not in ("checks", "series", "tensors")},
            "checks": [check.as_dict() for check in self.checks],
            "series": {name: list(values) for name, values in self.series.items()},
            "tensors": [_finite(asdict(tensor)) for tensor in self.tensors],
            "verdict": self.verdict,
        }


def as_whole(reports: Sequence[Report]) -> dict[str, Any]:
    """The object of schema 1, which JSON, JUnit and HTML are written from."""
    return {
        "schema": SCHEMA,
        "tool": {"name": "cgconvert", "version": __version__},
        "verdict": overall(check for report in reports for check in report.checks),
        "artefacts": [report.as_dict() for report in reports],
    }


def as_json(reports: Sequence[Report]) -> str:
    """Schema 1, with a newline at the end. The same reports give the same bytes."""
    return json.dumps(as_whole(reports), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def as_text(reports: Sequence[Report]) -> str:
    """A table for each artefact and, where there are several, one of them all."""
    tables = [as_table(report) for report in reports]
    return "\n".join([*tables, summary(reports)] if len(reports) > 1 else tables)


def summary(reports: Sequence[Report]) -> str:
    """One line an artefact: verdict, what it is, the divergence, agreement and generation."""
    rows: list[tuple[str, ...]] = [("", "artefact", "type", "runtime", *SUMMARY.values())]
    for report in reports:
        values = {check.name: check.value for check in report.checks}
        rows.append(
            (
                report.verdict.upper() if report.verdict == Verdict.FAIL else str(report.verdict),
                str(report.artefact["path"]),
                f"{report.artefact['format']} {report.artefact['type']}",
                f"{report.runtime['name']} {report.runtime['version']}",
                *(number(values.get(name)) for name in SUMMARY),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = (
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    return "\n".join(lines) + "\n"


def as_table(report: Report) -> str:
    """Plain aligned text; the last line is the verdict."""
    reference = report.reference
    rows = [
        (
            check.verdict.upper() if check.verdict == Verdict.FAIL else str(check.verdict),
            check.name,
            number(check.value),
            bound(check.comparison, check.threshold),
            check.detail,
        )
        for check in report.checks
    ]
    table = [("", "check", "value", "bound", ""), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    lines = [
        f"{report.artefact['path']}: {ran(vars(report))}",
        f"reference: {report.source['name']}, weights {reference['weights']}, computed in "
        f"{reference['compute']} on {reference['device']}",
        "",
    ]
    for row in table:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[4]]).rstrip())
    failed = [check.name for check in report.checks if check.verdict == Verdict.FAIL]
    ending = f"FAILED: {', '.join(failed)}" if failed else _passed(report)
    return "\n".join([*lines, "", ending]) + "\n"


WRITERS: Mapping[str, Callable[[Sequence[Report]], str]] = {
    ".json": as_json,
    ".xml": lambda reports: as_junit(as_whole(reports)),
    ".html": lambda reports: as_html(as_whole(reports)),
    ".txt": as_text,
}
"""Report formats by the suffix of the file they are written to."""


def write_reports(reports: Sequence[Report], path: Path) -> None:
    """Write in the format of the path's suffix, the whole file or nothing.

    Raises UsageError for a suffix without a format, OutputError where writing fails.
    """
    check_suffix(path)
    try:
        # A file's name may hold bytes that are no UTF-8: escaped as JSON has them.
        text = WRITERS[path.suffix](reports)
        write_atomic(path, text.encode(errors="backslashreplace"))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def rounded(values: Iterable[float]) -> list[float | None]:
    """For a series: three significant digits, None for what is not finite."""
    return [float(f"{v:.3g}") if math.isfinite(v) else None for v in map(float, values)]


def check_suffix(path: Path) -> None:
    """Raise UsageError where no report format has the path's suffix: before the long work."""
    if path.suffix not in WRITERS:
        raise UsageError(f"{path}: a report ends in {', '.join(WRITERS)}")


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """For JSON, which has no NaN and no infinity."""
    broken = {k for k, v in values.items() if isinstance(v, float) and not math.isfinite(v)}
    return {k: None if k in broken else v for k, v in values.items()}


def _passed(report: Report) -> str:
    judged = [check for check in report.checks if check.verdict != Verdict.INFO]
    warned = [check.name for check in judged if check.verdict == Verdict.WARNING]
    ending = f"passed: {len(judged)} checks"
    return f"{ending}, warnings: {', '.join(warned)}" if warned else ending
