"""`cgconvert run`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from cgconvert import api as convert
from cgconvert.cli import recipe
from cgconvert.cli.convert import carry_out
from cgconvert.cli.options import SIZE, WriteOptions, common, writing
from cgconvert.cli.verifying import verify_all
from cgconvert.errors import InputError
from cgconvert.formats.read import ReadOptions, read
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.texts.text import Text, read_text
from cgconvert.verify.prompts import TEXT_TOKENS
from cgconvert.verify.thresholds import known_bounds

__all__ = ["command"]


@click.command("run")
@click.argument("recipe_file", metavar="RECIPE.yaml")
@writing
@common
def command(recipe_file: str, how: WriteOptions) -> None:
    """Take the steps of a recipe, in order. RECIPE is a file, or the name of a shipped one.

    \b
    Example:
      cgconvert run codegen-tiny-mono
    """
    found = recipe.load(recipe.find(recipe_file), known_bounds())
    texts = {  # before anything is written
        text: read_text(text) for step in found.steps if (text := step.options.get("text"))
    }
    paths = {k: Path(v) for k, v in found.reading.items() if k in ("tokenizer", "config")}
    checkpoint = read(found.source, ReadOptions(**{**found.reading, **paths}))
    written: list[Path] = []
    for number, step in enumerate(found.steps, 1):
        click.echo(f"[{number}/{len(found.steps)}] {step.command}")
        if step.command == "verify":
            _verify(step.options, found, checkpoint, written, texts, how.dry_run)
        else:
            plan = convert.CONVERSIONS[step.command](checkpoint, **_options(step, found.path))
            carry_out(plan, how)
            written.append(plan.output)


def _options(step: recipe.Step, path: Path) -> dict[str, Any]:
    given = dict(step.options)
    if "output" in given:
        given["output"] = Path(given["output"])
    for name in recipe.SIZES:
        if name in given:
            try:
                given[name] = SIZE.convert(given[name], None, None)
            except click.BadParameter as error:
                raise InputError(f"{path}:{step.line}: {name}: {error.message}") from None
    if "tensor_type" in given:
        given["tensor_type"] = tuple(given["tensor_type"].items())
    return given


def _verify(
    options: Any,
    found: recipe.Recipe,
    checkpoint: Checkpoint,
    written: list[Path],
    texts: Mapping[str, Text],
    dry_run: bool,
) -> None:
    """Verify what the steps before have written."""
    if dry_run:
        for path in written:
            click.echo(f"verify {path}")
        return
    verify_all(
        written,
        reference=checkpoint,
        device=options.get("device", "auto"),
        runtime=options.get("runtime"),
        texts=[texts[options["text"]]] if "text" in options else [],
        text_tokens=options.get("text_tokens", TEXT_TOKENS),
        reports=[Path(options["report"])] if "report" in options else [],
        thresholds=found.thresholds,
    )
