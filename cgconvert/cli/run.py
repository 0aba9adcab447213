"""`cgconvert run`."""

from __future__ import annotations

from typing import Any

import click

from cgconvert.api.declarations import DRY_RUNS, READ, WRITE
from cgconvert.cli import recipe, shipped
from cgconvert.cli.conversions import check_lists_tensors
from cgconvert.cli.options import click_options
from cgconvert.cli.output import columns
from cgconvert.cli.recipe_list import listing
from cgconvert.cli.recipe_run import RecipeRun
from cgconvert.options import Option
from cgconvert.verification.thresholds import known_bounds

__all__ = ["command"]

HELP = """\
Run the steps of a recipe in order.

RECIPE is a file, - for the standard input, or a name: of a shipped recipe (see --list) or of a
published model, which has the recipe of its size.

\b
Example:
  cgconvert run codegen-tiny-mono
  cgconvert run codegen-2B-multi
  cgconvert run codegen-350M-mono --source ./my-fine-tune
"""

SOURCE = Option(name="source", help="A source to use instead of the recipe's.")
LIST = Option(
    name="list",
    type=bool,
    default=False,
    help="Show the shipped recipes: source, size, steps, what they write.",
)


def _run(
    recipe_file: str | None, source: str | None, dry_run: bool, tensors: bool, **values: Any
) -> None:
    if values.pop(LIST.name):
        click.echo(listing(columns()))
        return
    if recipe_file is None:
        raise click.UsageError("Missing argument 'RECIPE'; cgconvert run --list shows the shipped")
    if tensors:
        check_lists_tensors(dry_run=dry_run)
    source = source or shipped.implied_source(recipe_file)
    recipes = recipe.load(shipped.find(recipe_file), known_bounds(), source)
    reading = {option.name: values.pop(option.name) for option in READ}
    overriding = {name: value for name, value in reading.items() if value not in (None, ())}
    run = RecipeRun(recipes, overriding, values)
    if dry_run:
        run.describe(tensors=tensors)
    else:
        run.carry_out()


command = click.Command(
    "run",
    params=[
        click.Argument(["recipe_file"], metavar="RECIPE", required=False),
        *click_options(SOURCE, WRITE[0], *DRY_RUNS, LIST, *WRITE[1:], *READ),
    ],
    callback=_run,
    help=HELP,
)
