"""`cgconvert verify`, and what a recipe's verify step has in common with it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from cgconvert.api.declarations import READ, VERIFY
from cgconvert.api.sources import read_options
from cgconvert.api.verification import artefacts_at, reports_of
from cgconvert.cli.options import arguments, click_options
from cgconvert.cli.text import printable
from cgconvert.errors import UsageError, VerificationError
from cgconvert.formats.read import read
from cgconvert.formats.registry import OUT, find_all
from cgconvert.texts.text import read_text
from cgconvert.verification.report import check_report_path
from cgconvert.verification.report.model import Report
from cgconvert.verification.report.text import as_table, summary
from cgconvert.verification.thresholds import known_bounds

__all__ = ["command", "print_and_judge"]

HELP = """\
Run ARTEFACT in its real runtime and compare it with the fp16 reference.

Without ARTEFACT: all artefacts under ./out. Exits with 4 if a check fails.

\b
Example:
  cgconvert verify out/codegen-350M-mono/onnx --report verdict.json
"""


def _run(artefact: Path | None, **values: Any) -> None:
    options = arguments((*VERIFY, *READ), values)
    reading = {option.name: options.pop(option.name) for option in READ}
    for path in options["report"]:
        check_report_path(path)
    if artefact is None and not find_all(OUT):
        raise UsageError(
            f"nothing to verify under ./{OUT}; name the artefact: cgconvert verify PATH"
        )
    artefacts = artefacts_at(artefact or OUT)
    texts = [read_text(path) for path in dict.fromkeys(options.pop("text"))]
    reference, reading_options = options.pop("reference"), read_options(**reading)
    thresholds = dict.fromkeys(known_bounds(), options.pop("threshold") or {})
    print_and_judge(
        reports_of(
            artefacts,
            reference=read(reference, reading_options) if reference else None,
            options=reading_options,
            texts=texts,
            thresholds=thresholds,
            progress="auto",
            **options,
        )
    )


def _printable(lines: str) -> str:
    """Escape what a terminal would obey in lines of a report; names of files may hold it."""
    return "\n".join(map(printable, lines.split("\n")))


def print_and_judge(reports: Iterable[Report]) -> None:
    """Print the table of each report as soon as it is complete, then one that sums them up.

    Raises VerificationError if a check failed.
    """
    complete = []
    for report in reports:
        click.echo(_printable(as_table(report)))
        complete.append(report)
    if len(complete) > 1:
        click.echo(_printable(summary(complete)))
    failed = [str(report.artefact["path"]) for report in complete if not report.passed]
    if failed:
        raise VerificationError(f"verification failed: {', '.join(failed)}")


command = click.Command(
    "verify",
    params=[
        click.Argument(["artefact"], required=False, type=click.Path(path_type=Path)),
        *click_options(*VERIFY, *READ),
    ],
    callback=_run,
    help=HELP,
)
