"""Plants bugs, verifies the artefacts, and records which checks fail."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cgconvert.errors import CgconvertError
from cgconvert.model.decoder import Checkpoint
from cgconvert.verification.report.model import Report
from cgconvert.verification.thresholds import Verdict
from cgconvert.verification.verify import verify
from cgconvert.write.plan import Plan
from tests.mutations.mutation import Mutation, plant

__all__ = ["Outcome", "survey", "verified"]


@dataclass(frozen=True)
class Outcome:
    """The checks that `verify` ran on one faulty artefact, or the `error` that stopped it."""

    mutation: Mutation
    type: str
    failed: tuple[str, ...]
    checks: tuple[str, ...]
    error: str = ""

    @property
    def caught(self) -> bool:
        """Whether one of the checks that name this bug failed."""
        return not self.mutation.caught_by.isdisjoint(self.failed)

    @property
    def by_logits(self) -> bool:
        """Whether a comparison of logits alone would have caught the bug."""
        return any(name.startswith("logits.") for name in self.failed)


def verified(plan: Plan, source: Checkpoint, new_tokens: int = 4) -> Report:
    """Verify on one thread: llama.cpp's threads are very slow while cores are busy."""
    return verify(
        plan.output, plan.format, plan.type, source, "cpu", new_tokens=new_tokens, threads=1
    )


def survey(
    pairs: Iterable[tuple[Mutation, str]],
    source: Checkpoint,
    valid: Mapping[str, Plan],
    folder: Path,
) -> Iterator[tuple[Outcome, Plan]]:
    """Plant and verify each pair; an artefact exists until the next pair is asked for."""
    for mutation, type_ in pairs:
        plan = plant(mutation, type_, source, valid, folder)
        try:
            checks = verified(plan, mutation.source(source) if mutation.source else source).checks
            failed = tuple(check.name for check in checks if check.verdict == Verdict.FAIL)
            outcome = Outcome(mutation, type_, failed, tuple(check.name for check in checks))
        except CgconvertError as error:
            outcome = Outcome(mutation, type_, (), (), f"{type(error).__name__}: {error}")
        yield outcome, plan
        shutil.rmtree(folder)
