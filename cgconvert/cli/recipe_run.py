"""How a recipe runs: all artefacts are planned first, and complete ones are not written again.

Every output is checked before anything is written, so that a recipe does not stop after hours for a
reason that was known at the start.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from cgconvert.api.declarations import OUTPUT
from cgconvert.api.sources import load
from cgconvert.cli.output import progress_of_command
from cgconvert.cli.recipe import Recipe, Step
from cgconvert.cli.recipe_convert import READING, Conversion, cache_of, only
from cgconvert.cli.recipe_verify import Verification
from cgconvert.errors import InputError
from cgconvert.escaping import printable
from cgconvert.io.file_names import path_from_here
from cgconvert.model.decoder import Checkpoint
from cgconvert.texts.text import Text, read_text
from cgconvert.verification.report import check_report_path
from cgconvert.write.manifest import manifest_path

__all__ = ["RecipeRun"]


class RecipeRun:
    """Recipes, ready to run with the options of the command line.

    The constructor reads the headers of sources and the texts, and plans the artefacts. It writes
    nothing.

    Args:
        recipes: What `recipe.load` returned.
        reading: Options of reading from the command line. They replace those at the top of a
            recipe; those of a step replace both.
        writing: Options of writing from the command line. One that is not its default replaces that
            of every step.

    Raises:
        InputError: A source or text cannot be read, or two steps write the same artefact.
        UsageError: Options of a step do not go together, or a report cannot be written.
    """

    def __init__(
        self, recipes: Sequence[Recipe], reading: Mapping[str, Any], writing: Mapping[str, Any]
    ) -> None:
        self.reading, self.writing = reading, writing
        self.checkpoints: dict[tuple[str, str], Checkpoint] = {}
        verifications = [s for r in recipes for s in r.steps if s.command == "verify"]
        for path in (path for step in verifications for path in step.options.get("report", ())):
            check_report_path(Path(path))
        names = {text for step in verifications for text in step.options.get("text", ())}
        self.texts: dict[str, Text] = {name: read_text(name) for name in names}
        self.tasks = [task for recipe in recipes for task in self._tasks(recipe)]
        self._check_outputs()

    def carry_out(self) -> None:
        """Carry out, in order, each step that is not complete already.

        Raises:
            UsageError: Something else lies at an output. Nothing has been written then, unless the
                output is that of a step that needs a file of an earlier step.
            VerificationError: A check failed; the steps after that are not carried out.
        """
        for task in self.tasks:
            if isinstance(task, Conversion) and task.plan is not None:
                with cache_of(task.step):
                    task.refuse_obstacle()
        printed: set[str] = set()
        for number, task in enumerate(self.tasks, 1):
            context = self._print_title(number, task.step)
            with cache_of(task.step):
                if isinstance(task, Conversion):
                    task.carry_out(printed, context)
                else:
                    task.carry_out(context, again=self.writing["force"])

    def describe(self, *, tensors: bool = False) -> None:
        """Print which steps are complete, and what the others would do or why they would stop.

        With `tensors` the tensors of each artefact are listed too.
        """
        printed: set[str] = set()
        outcomes = []
        for number, task in enumerate(self.tasks, 1):
            self._print_title(number, task.step)
            with cache_of(task.step):
                if isinstance(task, Conversion):
                    outcomes.append(task.describe(printed, tensors=tensors))
                else:
                    outcomes.append(task.describe())
        there, to_run, stopped = map(outcomes.count, ("skip", "run", "stop"))
        if stopped:
            click.echo(f"nothing would be written: {stopped} of {len(outcomes)} steps would stop")
        else:
            click.echo(f"{there} of {len(outcomes)} steps are there, {to_run} would run")

    def _print_title(self, number: int, step: Step) -> str:
        """Print the number of a step and what it is; return the number, for its progress."""
        context = f"[{number}/{len(self.tasks)}]"
        click.echo(printable(f"{context} {step.title}"))
        return context

    def _tasks(self, recipe: Recipe) -> list[Conversion | Verification]:
        """Make a task of each step, and the plan of each artefact.

        A plan that needs an imatrix which an earlier step saves is made when its step runs.
        """
        tasks: list[Conversion | Verification] = []
        conversions: list[Conversion] = []
        saved_imatrices: set[str] = set()
        for step in recipe.steps:
            reading = {**recipe.source_options, **self.reading, **only(step, READING)}
            if step.command == "verify":
                reference = self._reference(recipe, step, reading)
                texts = [self.texts[name] for name in step.options.get("text", ())]
                before = tuple(conversions)
                tasks.append(Verification(step, recipe.thresholds, reference, before, texts))
                continue
            checkpoint = self._load(recipe.source, reading)
            task = Conversion(step, recipe.label, checkpoint, self.writing)
            imatrix = step.options.get("imatrix")
            if imatrix not in saved_imatrices or Path(imatrix).exists():
                task.make_plan()
            if "save_imatrix" in step.options:
                saved_imatrices.add(step.options["save_imatrix"])
            conversions.append(task)
            tasks.append(task)
        return tasks

    def _reference(
        self, recipe: Recipe, step: Step, reading: Mapping[str, Any]
    ) -> Checkpoint | None:
        """The model that a `verify` step names to compare with; None if it names none."""
        own = only(step, READING)
        if "reference" in step.options:
            return self._load(step.options["reference"], own)
        return self._load(recipe.source, reading) if own else None

    def _load(self, source: str, options: Mapping[str, Any]) -> Checkpoint:
        """Read a model, once for all steps that read it with the same options."""
        key = source, repr(sorted(options.items()))
        if key not in self.checkpoints:
            self.checkpoints[key] = load(source, progress=progress_of_command(), **options)
        return self.checkpoints[key]

    def _check_outputs(self) -> None:
        """Raise InputError if a step would write at, in or around what an earlier one writes."""
        writers: dict[Path, Step] = {}
        for task in self.tasks:
            if not isinstance(task, Conversion):
                label = task.conversions[0].label
                for report in task.step.options.get("report", ()):
                    _refuse_overlap(label, task.step, Path(report), "report", writers)
            elif task.plan is not None:
                _refuse_overlap(task.label, task.step, task.plan.output, OUTPUT.name, writers)
                writers[_real(task.plan.output)] = task.step


def _refuse_overlap(
    label: str, step: Step, output: Path, option: str, writers: Mapping[Path, Step]
) -> None:
    """Raise InputError if `output` overlaps with what another step writes."""
    real = _real(output)
    for path, first in writers.items():
        if path == real:
            verb = "does"
        elif path in real.parents or real in path.parents or real == manifest_path(path):
            verb = f"writes {path_from_here(path)}"
        else:
            continue
        raise InputError(
            f"{label}:{step.line}: {step.title}: would write {output}, as the step of line "
            f"{first.line} {verb}; give one of them another {option}"
        )


def _real(path: Path) -> Path:
    """The path without links, by which two spellings of one place are the same."""
    return Path(os.path.realpath(path))
