"""Carrying out recipes: all their artefacts are planned before the first is written."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cgconvert.api.conversions import plan
from cgconvert.api.declarations import OUTPUT, READ, WRITE
from cgconvert.api.sources import load
from cgconvert.api.verification import artefacts_at, reports_of
from cgconvert.cli.conversions import carry_out
from cgconvert.cli.output import progress_of_command
from cgconvert.cli.recipe import Recipe, Step
from cgconvert.cli.text import printable
from cgconvert.cli.verify import print_and_judge
from cgconvert.errors import InputError
from cgconvert.model.decoder import Checkpoint
from cgconvert.texts.text import Text, read_text
from cgconvert.verification.report import check_report_path
from cgconvert.verification.thresholds import known_bounds
from cgconvert.write.plan import LazyPlan

__all__ = ["RecipeRun"]

READING = {option.name for option in READ}
WRITING = {option.name: option.default for option in WRITE}


@dataclass
class Conversion:
    """A step that writes an artefact.

    Attributes:
        step: The step.
        label: How messages call its recipe's file.
        checkpoint: The model that it converts.
        plan: What it writes; None until then if an earlier step has to write a file for it.
        path: Where the artefact is, once it is written; in a dry run, where it would be.
    """

    step: Step
    label: str
    checkpoint: Checkpoint
    plan: LazyPlan | None = None
    path: Path | None = None


@dataclass
class Verification:
    """A step that verifies the artefacts of all steps before it in its recipe.

    Attributes:
        step: The step.
        recipe: Its recipe.
        reference: The model that it compares with; None if each artefact's manifest names its own.
        conversions: The steps before it that write artefacts.
    """

    step: Step
    recipe: Recipe
    reference: Checkpoint | None
    conversions: Sequence[Conversion]


class RecipeRun:
    """Recipes with the options of the command line, which hold for all steps.

    Making one reads headers of sources and texts, and plans every artefact. Nothing is written.

    Args:
        recipes: What `recipe.load` returned.
        reading: Options of reading that take the place of the recipes' own.
        writing: Options of writing; a default gives way to what a step says.

    Raises:
        InputError: A source or text cannot be read, or two steps write the same artefact.
        UsageError: Options of a step do not go together, or a report cannot be written.
    """

    def __init__(
        self, recipes: Sequence[Recipe], reading: Mapping[str, Any], writing: Mapping[str, Any]
    ) -> None:
        self.reading, self.writing = reading, writing
        self.checkpoints: dict[tuple[str, str], Checkpoint] = {}
        self.notes: set[str] = set()
        verifications = [s for r in recipes for s in r.steps if s.command == "verify"]
        for path in (path for step in verifications for path in step.options.get("report", ())):
            check_report_path(Path(path))
        names = {text for step in verifications for text in step.options.get("text", ())}
        self.texts: dict[str, Text] = {name: read_text(name) for name in names}
        self.tasks = [task for recipe in recipes for task in self._tasks(recipe)]
        self._check_outputs()

    def carry_out(self, *, dry_run: bool) -> None:
        """Carry out all steps in order, or print what they would do.

        Raises VerificationError if a check fails; the steps after that are not carried out.
        """
        for number, task in enumerate(self.tasks, 1):
            context = f"[{number}/{len(self.tasks)}]"
            click.echo(printable(f"{context} {task.step.title}"))
            if isinstance(task, Conversion):
                self._convert(task, dry_run, context)
            else:
                self._verify(task, dry_run, context)

    def _tasks(self, recipe: Recipe) -> list[Conversion | Verification]:
        tasks: list[Conversion | Verification] = []
        conversions: list[Conversion] = []
        imatrix_files: set[str] = set()
        for step in recipe.steps:
            reading = {**recipe.source_options, **self.reading, **_only(step, READING)}
            if step.command == "verify":
                reference = self._reference(recipe, step, reading, conversions)
                tasks.append(Verification(step, recipe, reference, tuple(conversions)))
                continue
            task = Conversion(step, recipe.label, self._load(recipe.source, reading))
            imatrix = step.options.get("imatrix", "")
            if imatrix not in imatrix_files or Path(imatrix).exists():
                task.plan = _plan(task)
            imatrix_files.add(step.options.get("save_imatrix", ""))
            conversions.append(task)
            tasks.append(task)
        return tasks

    def _reference(
        self,
        recipe: Recipe,
        step: Step,
        reading: Mapping[str, Any],
        conversions: Sequence[Conversion],
    ) -> Checkpoint | None:
        """What a `verify` step compares with: what it names, otherwise what was converted."""
        if "reference" in step.options:
            return self._load(step.options["reference"], _only(step, READING))
        if _only(step, READING):
            return self._load(recipe.source, reading)
        first, *others = (task.checkpoint for task in conversions)
        return first if all(checkpoint is first for checkpoint in others) else None

    def _load(self, source: str, options: Mapping[str, Any]) -> Checkpoint:
        """The model, read once for all steps that read it in the same way."""
        key = source, repr(sorted(options.items()))
        if key not in self.checkpoints:
            self.checkpoints[key] = load(source, **options)
        return self.checkpoints[key]

    def _check_outputs(self) -> None:
        """Raise InputError if two steps write to one path."""
        writers: dict[Path, Step] = {}
        for task in self.tasks:
            if not isinstance(task, Conversion) or task.plan is None:
                continue
            step, output = task.step, task.plan.output
            first = writers.setdefault(output.absolute(), step)
            if first is not step:
                raise InputError(
                    f"{task.label}:{step.line}: {step.title}: would write {output}, as the step "
                    f"of line {first.line} does; give one of them another {OUTPUT.name}"
                )

    def _convert(self, task: Conversion, dry_run: bool, context: str) -> None:
        """Write the artefact; `context` stands before the steps of its progress."""
        writing = {name: task.step.options.get(name, WRITING[name]) for name in WRITING}
        writing |= {k: value for k, value in self.writing.items() if value != WRITING[k]}
        planned = task.plan or _plan(task)
        task.path = carry_out(
            planned, dry_run=dry_run, printed=self.notes, context=context, **writing
        )

    def _verify(self, task: Verification, dry_run: bool, context: str) -> None:
        options = _without(task.step, {*READING, "reference", "threshold", "text", "report"})
        paths = [conversion.path for conversion in task.conversions if conversion.path]
        if dry_run:
            for path in paths:
                click.echo(f"verify {printable(str(path))}")
            return
        bounds = task.step.options.get("threshold", {})
        reports = [Path(path) for path in task.step.options.get("report", ())]
        print_and_judge(
            reports_of(
                artefacts_at(paths),
                reference=task.reference,
                texts=[self.texts[name] for name in task.step.options.get("text", ())],
                report=reports,
                thresholds={
                    kind: {**task.recipe.thresholds.get(kind, {}), **bounds}
                    for kind in known_bounds()
                },
                progress=progress_of_command(context),
                **options,
            ),
            reports,
        )


def _plan(task: Conversion) -> LazyPlan:
    own = _without(task.step, READING | WRITING.keys())
    return plan(task.checkpoint, task.step.command, **own)


def _only(step: Step, names: Container[str]) -> dict[str, Any]:
    return {name: value for name, value in step.options.items() if name in names}


def _without(step: Step, names: Container[str]) -> dict[str, Any]:
    return {name: value for name, value in step.options.items() if name not in names}
