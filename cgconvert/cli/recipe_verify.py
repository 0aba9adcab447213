"""A step of a recipe that verifies what the steps before it have written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from cgconvert.api.verification import artefacts_at, reports_of
from cgconvert.cli.output import progress_of_command
from cgconvert.cli.recipe import Step
from cgconvert.cli.recipe_convert import READING, Conversion, only
from cgconvert.cli.verify import print_and_judge
from cgconvert.escaping import printable
from cgconvert.model.decoder import Checkpoint
from cgconvert.texts.text import Text
from cgconvert.verification.record import Passed, VerificationRecord
from cgconvert.verification.report.model import Report
from cgconvert.verification.thresholds import known_bounds

__all__ = ["Verification"]

SEPARATE_OPTIONS = {*READING, "reference", "threshold", "text", "report"}
"""Options of the step that are not passed on to the verification as they are."""


@dataclass
class Verification:
    """A step that verifies the artefacts of all steps before it in its recipe.

    Attributes:
        step: The step.
        thresholds: The recipe's bounds by stored type, then by name of check.
        reference: The model to compare with; None: each artefact is compared with its own source.
        conversions: The steps before it that write artefacts.
        texts: The texts to compare logits on.
    """

    step: Step
    thresholds: Mapping[str, Mapping[str, float | None]]
    reference: Checkpoint | None
    conversions: Sequence[Conversion]
    texts: Sequence[Text] = field(default_factory=list)

    def carry_out(self, context: str, *, again: bool = False) -> None:
        """Verify, unless the same verification passed before and `again` is false.

        `context` stands before the steps of progress. Raises VerificationError if a check fails.
        """
        record = self._record()
        if not again and (passed := record.read(self._reports)):
            self._print_passed(passed)
            click.echo("--force verifies again")
            return
        verified: list[Report] = []
        print_and_judge(self._verified(verified, context), self._reports)
        if record.name == self._record().name:  # no file was changed meanwhile
            record.write(verified, self._reports)

    def describe(self) -> str:
        """Print what would be verified, or that it passed before; return "run" or "skip"."""
        is_written = all(conversion.state().kind == "complete" for conversion in self.conversions)
        if is_written and (passed := self._record().read(self._reports)):
            self._print_passed(passed)
            return "skip"
        for path in self._paths:
            click.echo(f"verify {printable(str(path))}")
        return "run"

    @property
    def _paths(self) -> list[Path]:
        return [conversion.path for conversion in self.conversions if conversion.path]

    @property
    def _reports(self) -> list[Path]:
        return [Path(path) for path in self.step.options.get("report", ())]

    @property
    def _bounds(self) -> dict[str, dict[str, float | None]]:
        """The recipe's bounds for each type, with the step's own, which hold for all types."""
        own = self.step.options.get("threshold", {})
        return {kind: {**self.thresholds.get(kind, {}), **own} for kind in known_bounds()}

    @property
    def _options(self) -> dict[str, Any]:
        return only(self.step, self.step.options.keys() - SEPARATE_OPTIONS)

    def _verified(self, verified: list[Report], context: str) -> Iterator[Report]:
        """Verify the artefacts one after the other; `verified` collects the reports."""
        sources = {
            id(conversion.checkpoint): conversion.checkpoint for conversion in self.conversions
        }
        reports = reports_of(
            artefacts_at(self._paths),
            reference=self.reference
            or (next(iter(sources.values())) if len(sources) == 1 else None),
            texts=self.texts,
            report=self._reports,
            thresholds=self._bounds,
            progress=progress_of_command(context),
            **self._options,
        )
        for report in reports:
            verified.append(report)
            yield report

    def _record(self) -> VerificationRecord:
        """Return the record of this verification, for the files as they are now."""
        subjects = [
            (conversion.path, self.reference or conversion.checkpoint)
            for conversion in self.conversions
            if conversion.path
        ]
        settings = {
            "bounds": self._bounds,
            "options": {name: str(value) for name, value in self._options.items()},
            "texts": [[text.name, text.sha256] for text in self.texts],
        }
        return VerificationRecord(subjects, settings)

    @staticmethod
    def _print_passed(passed: Passed) -> None:
        click.echo(
            "verified before, with the same files, bounds and versions (so says the cache); passed:"
        )
        for run in passed.runs:
            click.echo(f"  {printable(run)}")
