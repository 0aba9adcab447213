"""One check and its verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from cgconvert.errors import first_few

__all__ = [
    "MAX_NAMED",
    "Check",
    "Verdict",
    "at_least",
    "at_most",
    "no_differences",
    "worst_verdict",
]

MAX_NAMED = 3
"""How many differences a check's detail names."""


class Verdict(StrEnum):
    """The outcome of a check; INFO is a value that is reported and not judged."""

    PASS = "pass"
    INFO = "info"
    WARNING = "warning"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """What was measured, the bound it is held to, and the verdict.

    Attributes:
        name: For example "logits.kl_mean".
        value: What was measured; None if there was nothing to measure.
        threshold: The bound; None if the value is only reported.
        comparison: "<=" or ">=", as in `value <= threshold`.
        verdict: PASS, INFO, WARNING or FAIL.
        detail: What explains the value, for a person.
    """

    name: str
    value: float | None
    threshold: float | None
    comparison: str
    verdict: Verdict
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The check for JSON: NaN and infinity become None and are named in the detail."""
        value = self.value
        if value is None or math.isfinite(value):
            return asdict(self)
        detail = f"{self.detail}; value is {value}" if self.detail else f"value is {value}"
        return asdict(self) | {"value": None, "detail": detail}


def at_most(name: str, value: float | None, threshold: float | None, detail: str = "") -> Check:
    """Make a check that passes if value <= threshold; NaN fails, None on either side is INFO."""
    return _judge(name, value, threshold, "<=", detail)


def at_least(name: str, value: float | None, threshold: float | None, detail: str = "") -> Check:
    """Make a check that passes if value >= threshold; NaN fails, None on either side is INFO."""
    return _judge(name, value, threshold, ">=", detail)


def no_differences(name: str, differences: Sequence[str]) -> Check:
    """Make a check that passes if there are no differences; its detail names the first few."""
    return at_most(name, float(len(differences)), 0, first_few(differences, MAX_NAMED))


def worst_verdict(checks: Iterable[Check]) -> Verdict:
    """FAIL if any check failed, else WARNING if any check is a warning, else PASS."""
    verdicts = {check.verdict for check in checks}
    for verdict in (Verdict.FAIL, Verdict.WARNING):
        if verdict in verdicts:
            return verdict
    return Verdict.PASS


def _judge(
    name: str, value: float | None, threshold: float | None, comparison: str, detail: str
) -> Check:
    """Compare a value with its bound; `comparison` is "<=" or ">="."""
    if value is None or threshold is None:
        verdict = Verdict.INFO
    else:
        passes = value <= threshold if comparison == "<=" else value >= threshold
        verdict = Verdict.PASS if passes else Verdict.FAIL
    return Check(name, value, threshold, comparison, verdict, detail)
