"""A step of a recipe that writes an artefact: its plan, and what lies at its output."""

from __future__ import annotations

from collections.abc import Container, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cgconvert.api.conversions import plan
from cgconvert.api.declarations import CACHE, OUTPUT, READ, WRITE
from cgconvert.api.output_state import OutputState, output_state
from cgconvert.cli.conversions import carry_out
from cgconvert.cli.recipe import Step
from cgconvert.errors import UsageError
from cgconvert.escaping import printable
from cgconvert.io.cache import with_cache
from cgconvert.model.decoder import Checkpoint
from cgconvert.write.leftovers import unfinished
from cgconvert.write.plan import LazyPlan

__all__ = ["READING", "Conversion", "cache_of", "only"]

READING = {option.name for option in (*READ, *CACHE)}
WRITING = {option.name: option.default for option in WRITE}


@dataclass
class Conversion:
    """A step that writes an artefact.

    Attributes:
        step: The step.
        label: The name of the recipe's file in messages.
        checkpoint: The model that it converts.
        command_line: Options of writing from the command line. One that is not its default replaces
            the step's.
        plan: The plan of the artefact; None as long as an earlier step has to write a file that it
            needs.
        path: Where the artefact is, once it is there; in a dry run, where it would be.
    """

    step: Step
    label: str
    checkpoint: Checkpoint
    command_line: Mapping[str, Any]
    plan: LazyPlan | None = None
    path: Path | None = None

    def make_plan(self) -> LazyPlan:
        """Make the plan, unless that was done before.

        Raises InputError or UsageError if the options do not go together or a file is missing.
        """
        if self.plan is None:
            names = self.step.options.keys() - READING - WRITING.keys()
            own = only(self.step, names)
            self.plan = plan(self.checkpoint, self.step.command, **own)
        return self.plan

    def refuse_obstacle(self) -> None:
        """Raise UsageError if something lies at the output that will not be replaced."""
        if obstacle := self._obstacle(self.state()):
            raise UsageError(f"{self.label}:{self.step.line}: {self.step.title}: {obstacle}")

    def carry_out(self, printed: set[str], context: str) -> None:
        """Write the artefact unless it is there already; raises what `api.execute` does.

        `printed` has the notes that were printed before; `context` stands before the steps of
        progress.
        """
        state = self.state()
        if state.kind == "complete":
            self._print_there()
            return
        self.refuse_obstacle()
        self.path = carry_out(self.make_plan(), printed=printed, context=context, **self._writing())

    def describe(self, printed: set[str], *, tensors: bool = False) -> str:
        """Print whether the artefact is there; if not, the plan, and what lies in its way.

        With `tensors` the tensors are listed before the plan. Returns what a recipe would do with
        the step: skip, run or stop.
        """
        state = self.state()
        if state.kind == "complete":
            self._print_there()
            return "skip"
        self.path = carry_out(self.make_plan(), dry_run=True, tensors=tensors, printed=printed)
        if obstacle := self._obstacle(state):
            click.echo(f"would stop: {printable(obstacle)}")
            return "stop"
        writing = self._writing()
        left = unfinished(self.make_plan(), allow_nonfinite=writing["allow_nonfinite"])
        if left.continues and writing["keep"]:
            click.echo(f"would continue at {left.continues}")
        return "run"

    def _print_there(self) -> None:
        self.path = self.make_plan().output
        click.echo(f"already there: {printable(str(self.path))}")

    def _writing(self) -> dict[str, Any]:
        """The options of writing: those of the command line, then the step's, then defaults."""
        own = {name: self.step.options.get(name, default) for name, default in WRITING.items()}
        changed = {k: value for k, value in self.command_line.items() if value != WRITING[k]}
        return {**own, **changed}

    def state(self) -> OutputState:
        """Say what lies at the output; if the step saves an imatrix, that file must exist too."""
        state = output_state(self.make_plan(), all_bytes=True)
        imatrix = self.step.options.get("save_imatrix")
        if state.kind == "complete" and imatrix is not None and not Path(imatrix).exists():
            return OutputState("different", f"was written, but {imatrix} is not there")
        return state

    def _obstacle(self, state: OutputState) -> str:
        """Say what lies in the way of the step and what to do; "" if nothing does."""
        if state.kind in ("absent", "complete"):
            return ""
        if state.kind == "different" and self._writing()["force"]:
            return ""
        first = "--force replaces it" if state.kind == "different" else "move it"
        advice = f"{first}, or give the step another {OUTPUT.name}"
        colon = "" if state.kind == "different" else ":"
        return f"{self.make_plan().output}{colon} {state.reason}; {advice}"


def cache_of(step: Step) -> AbstractContextManager[None]:
    """Allow the cache while a step is carried out, unless it says that it is not to be used."""
    return with_cache(step.options.get(CACHE[0].name, CACHE[0].default))


def only(step: Step, names: Container[str]) -> dict[str, Any]:
    """The options of a step that have one of these names."""
    return {name: value for name, value in step.options.items() if name in names}
