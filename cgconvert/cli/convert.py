"""What the converting commands have in common: show the plan, or carry it out."""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from cgconvert.cli.options import WriteOptions, common, output, reading, writing
from cgconvert.cli.progress import TerminalProgress
from cgconvert.formats.read import ReadOptions, read
from cgconvert.io.progress import human_bytes
from cgconvert.write.execute import check, execute
from cgconvert.write.plan import LazyPlan

__all__ = ["carry_out", "converting"]

Planner = Callable[..., LazyPlan]


def converting(default_source: Callable[[], str] | None = None) -> Callable[[Planner], Any]:
    """A command out of a function (checkpoint, output, its own options) -> Plan.

    SOURCE and the options that all conversions share are read here, then the plan is carried out.
    `default_source` is asked where there is no SOURCE; without it SOURCE is required.
    """

    def decorate(planned: Planner) -> Any:
        def command(
            source: str | None,
            output: Path | None,
            how: WriteOptions,
            options: ReadOptions,
            **own: Any,
        ) -> None:
            given = source if source or default_source is None else default_source()
            checkpoint = read(str(given), options)
            plan = planned(checkpoint, output, **own)
            carry_out(plan, how)

        command.__doc__ = planned.__doc__
        argument = click.argument("source", required=default_source is None)
        return argument(output(writing(reading(common(command)))))

    return decorate


def carry_out(plan: LazyPlan, how: WriteOptions) -> None:
    """Write the artefact and say where it is, or only print the plan."""
    if how.dry_run or not plan.resolved:
        click.echo(plan.describe(), err=not how.dry_run)
    if how.dry_run:
        check(plan)
        return
    manifest = execute(
        plan,
        force=how.force,
        resume=how.resume,
        allow_nonfinite=how.allow_nonfinite,
        progress=TerminalProgress(),
    )
    size = sum(int(entry["bytes"]) for entry in manifest.files.values())
    click.echo(f"{plan.output}  {plan.format} {manifest.type}, {human_bytes(size)}")
    for line in _types(manifest.options.get("types", {})):
        click.echo(line)


def _types(table: Mapping[str, str]) -> Iterator[str]:
    """A line for each kind of matrix, of layers that follow each other in one type."""
    kinds: dict[str, list[tuple[int, str]]] = {}
    for name, kind in table.items():
        match = re.fullmatch(r"blk\.(\d+)\.(.*)", name)
        kinds.setdefault(match[2] if match else name, []).append(
            (int(match[1]) if match else -1, kind)
        )
    for name, layers in kinds.items():
        runs = [
            (kind, [layer for layer, _ in run])
            for kind, run in itertools.groupby(layers, key=operator.itemgetter(1))
        ]
        told = [kind if at[0] < 0 else f"{kind} {_range(at[0], at[-1])}" for kind, at in runs]
        yield f"  {name:<20} {', '.join(told)}"


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
