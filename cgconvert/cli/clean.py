"""`cgconvert clean`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from cgconvert.api.cleaning import Leftover, clean
from cgconvert.cli.text import age
from cgconvert.escaping import printable
from cgconvert.io.progress import format_bytes

__all__ = ["run"]


def run(path: Path, delete: bool) -> None:
    """List what interrupted runs have left, and remove it if `delete`."""
    leftovers = clean(path)
    removed = set()
    if delete and leftovers:
        removed = {leftover.path for leftover in clean(path, delete=True)}
    for leftover in leftovers:
        click.echo(_line(leftover, is_removed=leftover.path in removed))
    if not leftovers:
        click.echo(f"no interrupted run has left anything in {printable(str(path))}")
    elif not delete:
        total = format_bytes(sum(leftover.nbytes for leftover in leftovers))
        click.echo(f"{total} in total; --delete removes it, the same command again continues it")


def _line(leftover: Leftover, *, is_removed: bool) -> str:
    parts = [format_bytes(leftover.nbytes), f"{age(time.time() - leftover.modified)} old"]
    parts += [f"{leftover.progress} of {leftover.output.name}"] * bool(leftover.progress)
    if leftover.is_running:
        parts.append("a run is writing it")
    start = "removed  " if is_removed else ""
    return f"{start}{printable(str(leftover.path))}  {printable(', '.join(parts))}"
