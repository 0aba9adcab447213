"""`cgconvert verify`, and what a recipe's verify step has in common with it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from cgconvert.api.declarations import READ, VERIFY
from cgconvert.api.sources import read_options
from cgconvert.api.verification import artefacts_at, reports_of
from cgconvert.cli.options import arguments
from cgconvert.cli.output import columns, echo, progress_of_command
from cgconvert.errors import UsageError, VerificationError
from cgconvert.escaping import printable
from cgconvert.formats.read import read
from cgconvert.formats.registry import OUT, find_all
from cgconvert.io.progress import shown_while_reading
from cgconvert.texts.text import read_text
from cgconvert.verification.report import check_report_path
from cgconvert.verification.report.model import Report, total_sentence
from cgconvert.verification.report.text import overview, table, wrapped
from cgconvert.verification.thresholds import known_bounds

__all__ = ["print_and_judge", "run"]


def run(artefact: Path | None, **values: Any) -> None:
    """Verify an artefact, or all under ./out, and print the verdict."""
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
    progress = progress_of_command()
    with shown_while_reading(progress):
        source = read(reference, reading_options) if reference else None
    print_and_judge(
        reports_of(
            artefacts,
            reference=source,
            options=reading_options,
            texts=texts,
            thresholds=thresholds,
            progress=progress,
            **options,
        ),
        options["report"],
    )


def print_and_judge(reports: Iterable[Report], paths: Sequence[Path] = ()) -> None:
    """Print the table of each report as soon as it is complete, then one that sums them up.

    Args:
        reports: The reports; when the last one is taken, they are written to `paths`.
        paths: The files of the reports.

    Raises VerificationError if a check failed, MissingRuntimeError if all that failed is that a
    runtime is not installed.
    """
    complete: list[Report] = []
    width = columns()
    for report in reports:
        if complete:
            _print_sentence(complete[-1], width)
        complete.append(report)
        if not report.has_wrong_reference:
            _print(table(report, width))
    if len(complete) > 1:
        _print_sentence(complete[-1], width)
        _print(overview(complete, width))
    for path in dict.fromkeys(paths):
        click.echo(f"report written to {printable(str(path))}")
    if len(complete) == 1 and complete[0].has_wrong_reference:
        (check,) = complete[0].checks
        raise VerificationError(
            f"{complete[0].artefact['path']}: {check.detail}; give the right one with "
            "`reference=SOURCE`"
        )
    _print("\n".join(wrapped(printable(total_sentence(complete)), width)))
    _raise_if_failed(complete)


def _print_sentence(report: Report, width: int | None) -> None:
    _print("\n".join([*wrapped(printable(report.sentence), width), ""]))


def _raise_if_failed(reports: Sequence[Report]) -> None:
    failed = [str(r.artefact["path"]) for r in reports if not r.passed and not r.is_only_unrun]
    missing = dict.fromkeys(r.runtime["missing"] for r in reports if "missing" in r.runtime)
    unrun = [str(r.artefact["path"]) for r in reports if "missing" in r.runtime]
    texts = [f"verification failed: {', '.join(failed)}"] if failed else []
    if missing:
        texts.append(f"not run: {', '.join(unrun)}: {'; '.join(missing)}")
    if failed:
        if not missing and sys.stdout.isatty() and sys.stderr.isatty():
            # The sentence above has said it, on the same screen.
            raise click.exceptions.Exit(VerificationError.exit_code)
        raise VerificationError("; ".join(texts))
    if texts:
        raise UsageError(texts[0])


def _print(text: str) -> None:
    """Print lines of a report, without what a terminal would obey: names of files may hold it."""
    shown = "\n".join(map(printable, text.split("\n")))
    echo(shown)
