"""`cgconvert run`."""

from __future__ import annotations

from typing import Any

import click

from cgconvert.api.declarations import READ
from cgconvert.cli import recipe, shipped
from cgconvert.cli.conversions import check_lists_tensors
from cgconvert.cli.output import columns
from cgconvert.cli.recipe_list import listing
from cgconvert.cli.recipe_run import RecipeRun
from cgconvert.io.cache import with_cache
from cgconvert.verification.thresholds import known_bounds

__all__ = ["run"]


def run(
    recipe_file: str | None, source: str | None, dry_run: bool, tensors: bool, **values: Any
) -> None:
    """Carry out the steps of recipes, or print what they would do."""
    if values.pop("list"):
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
    with with_cache(all(recipe.cache for recipe in recipes)):
        recipe_run = RecipeRun(recipes, overriding, values)
        if dry_run:
            recipe_run.describe(tensors=tensors)
        else:
            recipe_run.carry_out()
