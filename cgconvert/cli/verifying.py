"""What `verify` and `run` have in common: find the reference, check, report, judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click

from cgconvert.artefact import Artefact, identify
from cgconvert.checkpoint.checkpoint import Checkpoint
from cgconvert.checkpoint.read import ReadOptions, read
from cgconvert.cli.progress import TerminalProgress
from cgconvert.errors import CgconvertError, UsageError, VerificationError
from cgconvert.verify.report import as_table, check_suffix, summary, write_reports
from cgconvert.verify.verify import verify

__all__ = ["verify_all"]


def verify_all(
    paths: Sequence[Path],
    *,
    reference: Checkpoint | None = None,
    options: ReadOptions | None = None,
    device: str = "auto",
    report: Path | None = None,
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Verify artefacts one after the other, print a table each and one of them all.

    Raises VerificationError where a check failed of any.
    """
    if report is not None:
        check_suffix(report)
    found = [identify(path) for path in paths]
    references: dict[str, Checkpoint] = {}
    reports = []
    for artefact in found:
        source = reference or _reference(artefact, options or ReadOptions(), references)
        done = verify(
            artefact.path,
            artefact.format,
            artefact.type,
            source,
            device,
            thresholds=(thresholds or {}).get(f"{artefact.format} {artefact.type}"),
            progress=TerminalProgress(),
        )
        click.echo(as_table(done))
        reports.append(done)
    if report is not None:
        write_reports(reports, report)
    if len(reports) > 1:
        click.echo(summary(reports))
    failed = [str(r.artefact["path"]) for r in reports if not r.passed]
    if failed:
        raise VerificationError(f"verification failed: {', '.join(failed)}")


def _reference(
    artefact: Artefact, options: ReadOptions, known: dict[str, Checkpoint]
) -> Checkpoint:
    """The source an artefact's manifest names, read the way it was read then."""
    hint = f"cgconvert verify {artefact.path} --reference SOURCE"
    if artefact.manifest is None:
        raise UsageError(f"{artefact.path}: has no manifest to tell its source; type: {hint}")
    origin = artefact.manifest.source.get("origin", {})
    given = str(origin.get("given", artefact.manifest.name))
    if given not in known:
        then = ReadOptions.from_origin(origin)
        said = {k: v for k, v in vars(options).items() if v is not None}
        try:
            known[given] = read(given, replace(then, **said))
        except CgconvertError as error:
            raise type(error)(f"{error}; where its source is now, say with: {hint}") from error
    return known[given]
