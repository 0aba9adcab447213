"""Commands that write an artefact: one for each conversion of the API."""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from cgconvert.api.conversion_table import conversions
from cgconvert.api.conversions import plan
from cgconvert.api.declarations import DRY_RUNS, OUTPUT, READ, WRITE, declared_options
from cgconvert.api.execution import execute
from cgconvert.cli.options import arguments
from cgconvert.cli.output import columns, progress_of_command, verbosity
from cgconvert.cli.text import one_line, with_flags
from cgconvert.errors import UsageError
from cgconvert.escaping import printable
from cgconvert.formats.registry import FORMATS, OUT, Artefact, find_all, load
from cgconvert.io.progress import Progress, format_bytes, shown_while_reading
from cgconvert.io.terminal import wrapped_fields
from cgconvert.model.decoder import WARNING
from cgconvert.write.execute import check_plan
from cgconvert.write.leftovers import unfinished
from cgconvert.write.ownership import Replacement
from cgconvert.write.plan import LazyPlan

__all__ = ["carry_out", "run"]


def run(conversion: str, source: str | None, **values: Any) -> None:
    """Convert a source by the conversion's name; without one, what its default is."""
    writing = {option.name: values.pop(option.name) for option in (*DRY_RUNS, *WRITE)}
    if source is None:
        source = _only_unquantized_model()
    options = (*conversions()[conversion].options, OUTPUT, *READ)
    progress = progress_of_command()
    with shown_while_reading(progress):
        planned = plan(source, conversion, **arguments(options, values))
    carry_out(planned, progress=progress, **writing)
    if writing["dry_run"]:
        _print_obstacle(planned, force=writing["force"])


def _print_obstacle(plan: LazyPlan, *, force: bool) -> None:
    """Say what lies at the output of a plan, if it would not be replaced."""
    try:
        Replacement(force=force, is_folder=plan.is_folder).check(plan.output)
    except UsageError as error:
        click.echo(f"would stop: {one_line(with_flags(str(error), declared_options()))}")


def carry_out(
    plan: LazyPlan,
    *,
    dry_run: bool = False,
    tensors: bool = False,
    printed: set[str] | None = None,
    context: str = "",
    progress: Progress | None = None,
    **writing: Any,
) -> Path:
    """Write the artefact and print where it is, or only print the plan; return its path.

    With `tensors` the list of tensors is printed before the plan. A plan that has to compute first
    is printed to stderr before that: it says how long it takes. Notes are printed to stderr, each
    once; `printed` has those that were printed before. `progress` has shown what reading took; if
    there was none, `context` stands before its steps, as the number of a recipe's step.
    """
    printed = set() if printed is None else printed
    _print_notes((*plan.source.notes, *plan.notes), printed)
    if tensors:
        check_lists_tensors(dry_run=dry_run)
        click.echo("\n".join(map(printable, plan.describe_tensors())))
    if dry_run or not plan.resolved:
        click.echo(_summary(plan), err=not dry_run)
    if dry_run:
        check_plan(plan)
        _print_unfinished(plan, writing, dry_run=True)
        return plan.output
    _print_unfinished(plan, writing, dry_run=False)
    result = execute(plan, progress=progress or progress_of_command(context), **writing)
    _print_notes(result.notes, printed)
    path = printable(str(result.path))
    click.echo(f"{path}  {result.format} {result.type}, {format_bytes(result.bytes)}")
    for line in _types(result.types):
        click.echo(line)
    return result.path


def check_lists_tensors(*, dry_run: bool) -> None:
    """Raise UsageError if tensors are to be listed, but not of a dry run."""
    if not dry_run:
        raise UsageError("`tensors` lists what would be written: it goes with `dry_run=True`")


def _summary(plan: LazyPlan) -> str:
    """Put what a plan says of itself in two columns, in lines that fit the terminal."""
    fields = []
    description = with_flags(plan.describe(), declared_options())
    for line in map(printable, description.split("\n")):
        name, _, text = line.partition(" ")
        fields.append((name, text.lstrip()) if name.endswith(":") else ("", line))
    return "\n".join(wrapped_fields(fields, columns()))


def _print_notes(notes: Iterable[str], printed: set[str]) -> None:
    """Print each note that is not yet in `printed` as a line on stderr, and record it there.

    A quiet command prints only warnings.
    """
    for note in notes:
        if note not in printed and not (verbosity.quiet and not note.startswith(WARNING)):
            label = "" if note.startswith(WARNING) else "note: "
            click.echo(label + one_line(with_flags(note, declared_options())), err=True)
            printed.add(note)


def _print_unfinished(plan: LazyPlan, writing: Mapping[str, Any], *, dry_run: bool) -> None:
    """Say on stderr what of an interrupted run is continued, and what is dropped."""
    if verbosity.quiet or not writing.get("keep", True):
        return
    left = unfinished(plan, allow_nonfinite=writing.get("allow_nonfinite", False))
    output = printable(str(plan.output))
    if left.continues:
        start = "would continue" if dry_run else "continuing"
        click.echo(f"{start} at {left.continues}: {output}", err=True)
    if left.drops:
        when = "now" if plan.resolved else "when this one is complete"
        click.echo(
            f"note: {output}: what an interrupted run of another plan has left ({left.drops}) "
            f"is dropped {when}",
            err=True,
        )


def _only_unquantized_model() -> str:
    """An unquantized artefact under ./out, if all that are there come from one model."""
    artefacts = [a for a in find_all(OUT) if a.type in load(a.format).unquantized_types]
    names = sorted({artefact.name for artefact in artefacts})
    if not artefacts:
        raise UsageError(
            f"nothing to quantize under ./{OUT}; name the source: cgconvert quantize SOURCE "
            "--bits 4 (for example codegen-350M-mono)"
        )
    if len(names) > 1:
        raise UsageError(
            f"several models under ./{OUT} ({', '.join(names)}); name one: "
            f"cgconvert quantize {artefacts[0].path} --bits 4"
        )

    def preference(artefact: Artefact) -> tuple[int, bool, int]:
        """First the type that has lost least, then Hugging Face folders, then the other formats."""
        types = list(load(artefact.format).unquantized_types)
        formats = list(FORMATS)
        return (
            types.index(artefact.type),
            artefact.format != "huggingface",
            formats.index(artefact.format),
        )

    best = min(artefacts, key=preference)
    return str(best.path)


def _types(types: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each kind of matrix: its types, with the ranges of layers that have them."""
    kinds: dict[str, list[tuple[int, str]]] = {}
    for name, type_ in types.items():
        match = re.fullmatch(r"blk\.(\d+)\.(.*)", name)
        kinds.setdefault(match[2] if match else name, []).append(
            (int(match[1]) if match else -1, type_)
        )
    for name, layers in kinds.items():
        runs = [
            (type_, [layer for layer, _ in run])
            for type_, run in itertools.groupby(layers, key=operator.itemgetter(1))
        ]
        ranges = [
            type_ if run[0] < 0 else f"{type_} {_range(run[0], run[-1])}" for type_, run in runs
        ]
        yield f"  {name:<20} {', '.join(ranges)}"


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
