"""`cgconvert run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from cgconvert.api.conversions import plan
from cgconvert.api.declarations import DRY_RUN, WRITE
from cgconvert.api.sources import load
from cgconvert.api.verification import artefacts_at, reports_of
from cgconvert.cli import recipe
from cgconvert.cli.conversions import carry_out
from cgconvert.cli.options import click_options
from cgconvert.cli.text import printable
from cgconvert.cli.verify import print_and_judge
from cgconvert.model.decoder import Checkpoint
from cgconvert.texts.text import Text, read_text
from cgconvert.verification.report import check_report_path
from cgconvert.verification.thresholds import known_bounds

__all__ = ["command"]

HELP = """\
Run the steps of a recipe in order. RECIPE is a file, or the name of a shipped one.

\b
Example:
  cgconvert run codegen-tiny-mono
"""


def _run(recipe_file: str, dry_run: bool, **writing: bool) -> None:
    loaded = recipe.load(recipe.find(recipe_file), known_bounds())
    # Texts are read and paths of reports checked before anything is written.
    texts = {text: read_text(text) for step in loaded.steps if (text := step.options.get("text"))}
    for step in loaded.steps:
        if "report" in step.options:
            check_report_path(Path(step.options["report"]))
    checkpoint = load(loaded.source, **loaded.source_options)
    written: list[Path] = []
    notes: set[str] = set()
    for number, step in enumerate(loaded.steps, 1):
        click.echo(f"[{number}/{len(loaded.steps)}] {step.command}")
        if step.command != "verify":
            planned = plan(checkpoint, step.command, **step.options)
            written.append(carry_out(planned, dry_run=dry_run, printed=notes, **writing))
        elif dry_run:
            for path in written:
                click.echo(f"verify {printable(str(path))}")
        else:
            _verify(written, step.options, loaded, checkpoint, texts)


def _verify(
    written: Sequence[Path],
    options: Mapping[str, Any],
    loaded: recipe.Recipe,
    checkpoint: Checkpoint,
    texts: Mapping[str, Text],
) -> None:
    """Verify the artefacts that the steps before this one have written."""
    own = dict(options)
    text, report = own.pop("text", None), own.pop("report", None)
    paths = [Path(report)] if report else []
    print_and_judge(
        reports_of(
            artefacts_at(written),
            reference=checkpoint,
            texts=[texts[text]] if text else [],
            report=paths,
            thresholds=loaded.thresholds,
            progress="auto",
            **own,
        ),
        paths,
    )


command = click.Command(
    "run",
    params=[
        click.Argument(["recipe_file"], metavar="RECIPE.yaml"),
        *click_options(WRITE[0], DRY_RUN, *WRITE[1:]),
    ],
    callback=_run,
    help=HELP,
)
