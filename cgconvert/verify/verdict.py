"""One check and its verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

__all__ = ["Check", "Verdict", "at_least", "at_most", "overall"]


class Verdict(StrEnum):
    """INFO is a value that is reported and not judged."""

    PASS = "pass"
    INFO = "info"
    WARNING = "warning"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """What was measured, the bound it is held to, and what came of it.

    `value` is None where there was nothing to measure, `threshold` None where nothing is demanded;
    `comparison` is "<=" or ">=", read as value, comparison, threshold.
    """

    name: str
    value: float | None
    threshold: float | None
    comparison: str
    verdict: Verdict
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN and no infinity: they become null, with a word in detail."""
        value = self.value
        if value is None or math.isfinite(value):
            return asdict(self)
        detail = f"{self.detail}; value is {value}" if self.detail else f"value is {value}"
        return asdict(self) | {"value": None, "detail": detail}


def at_most(name: str, value: float | None, threshold: float | None, detail: str = "") -> Check:
    """Passes where value <= threshold; NaN fails, and None on either side is only reported."""
    return _judge(name, value, threshold, "<=", detail)


def at_least(name: str, value: float | None, threshold: float | None, detail: str = "") -> Check:
    """Passes where value >= threshold; NaN fails, and None on either side is only reported."""
    return _judge(name, value, threshold, ">=", detail)


def overall(checks: Iterable[Check]) -> Verdict:
    """FAIL where one failed, else WARNING where one warned, else PASS."""
    seen = {check.verdict for check in checks}
    for verdict in (Verdict.FAIL, Verdict.WARNING):
        if verdict in seen:
            return verdict
    return Verdict.PASS


def _judge(
    name: str, value: float | None, threshold: float | None, comparison: str, detail: str
) -> Check:
    if value is None or threshold is None:
        verdict = Verdict.INFO
    else:
        kept = value <= threshold if comparison == "<=" else value >= threshold
        verdict = Verdict.PASS if kept else Verdict.FAIL
    return Check(name, value, threshold, comparison, verdict, detail)
