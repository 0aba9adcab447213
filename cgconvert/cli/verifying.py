"""What `verify` and `run` have in common: find the reference, check, report, judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click

from cgconvert.cli.progress import TerminalProgress
from cgconvert.errors import CgconvertError, UsageError, VerificationError
from cgconvert.formats.artefact import Artefact, identify
from cgconvert.formats.read import ReadOptions, read
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.runtimes import RUNTIMES
from cgconvert.texts.text import Text
from cgconvert.verify.prompts import TEXT_TOKENS
from cgconvert.verify.report import check_suffix, write_reports
from cgconvert.verify.report.text import as_table, summary
from cgconvert.verify.verify import verify

__all__ = ["verify_all"]


def verify_all(
    paths: Sequence[Path],
    *,
    reference: Checkpoint | None = None,
    options: ReadOptions | None = None,
    device: str = "auto",
    runtime: str | None = None,
    texts: Sequence[Text] = (),
    text_tokens: int = TEXT_TOKENS,
    reports: Sequence[Path] = (),
    thresholds: Mapping[str, Mapping[str, float | None]] | None = None,
) -> None:
    """Verify artefacts one after the other, print a table each and one of them all.

    `runtime` is for those of its format; the others keep their own. `thresholds` is by stored
    type ("gguf Q8_0"), then by check. Raises UsageError where `runtime` runs none of the
    artefacts, VerificationError where a check failed of any.
    """
    for path in reports:
        check_suffix(path)
    found = [identify(path) for path in paths]
    if runtime is not None:
        _check_runtime(runtime, found)
    references: dict[str, Checkpoint] = {}
    done = []
    for artefact in found:
        source = reference or _reference(artefact, options or ReadOptions(), references)
        report = verify(
            artefact.path,
            artefact.format,
            artefact.type,
            source,
            device,
            thresholds=(thresholds or {}).get(f"{artefact.format} {artefact.type}"),
            runtime=runtime if runtime in RUNTIMES[artefact.format] else None,
            texts=texts,
            text_tokens=text_tokens,
            progress=TerminalProgress(),
        )
        click.echo(as_table(report))
        done.append(report)
    for path in reports:
        write_reports(done, path)
    if len(done) > 1:
        click.echo(summary(done))
    failed = [str(r.artefact["path"]) for r in done if not r.passed]
    if failed:
        raise VerificationError(f"verification failed: {', '.join(failed)}")


def _check_runtime(runtime: str, artefacts: Sequence[Artefact]) -> None:
    formats = list(dict.fromkeys(artefact.format for artefact in artefacts))
    fitting = [name for kind in formats for name in RUNTIMES[kind]]
    if runtime not in fitting:
        said = f"runtime {runtime!r} does not run {' or '.join(formats)}"
        raise UsageError(f"{said}; use {' or '.join(fitting)}")


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
