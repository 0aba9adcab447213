"""A check and its verdict, and the bounds that each stored type is held to.

Bounds come from the formats' tables, or a user gives them.

A bound is four to five times the worst value measured on correct artefacts. These were made from
random models of the four published head sizes with 8 heads and 2 layers, with nearly uniform and
with sharp attention (scores of standard deviation 4), and from the embedded trained model. They
ran over whole contexts of 2,048 tokens in llama.cpp of 2026-11 with a float32 cache, onnxruntime
1.32 and transformers 5.23, with one thread:

    python -m tests.verification.false_alarms --seeds 2 --heads 8 --trained
        --vocabulary 6000 --new-tokens 32

The worst value stands in the `seen` of each row. It is nearly always that of 6B's head size with
sharp attention; other models are named there.

A small mistake in weights of little effect gives a small NMSE: 6e-5 for a layer-norm epsilon of
1e-6, 2e-4 for rotary pairs in halves under nearly uniform attention. That is well above the bounds
of the float types, and below what 8 bits and less lose. So the bounds of quantized types judge how
much quantization lost, which logits can show. They cannot show whether every weight is right; for
that the stored weights are compared.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from cgconvert.errors import InputError, first_few
from cgconvert.formats.base import ThresholdRow
from cgconvert.formats.registry import formats, load

__all__ = [
    "MAX_NAMED",
    "MINIMUMS",
    "NO_BOUND",
    "Check",
    "Verdict",
    "at_least",
    "at_most",
    "known_bounds",
    "no_differences",
    "parse_bound",
    "thresholds_for",
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
        minimum: What the value must reach beside a bound of "<=": less is impossible for a right
            artefact. None for no such bound.
    """

    name: str
    value: float | None
    threshold: float | None
    comparison: str
    verdict: Verdict
    detail: str = ""
    minimum: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The check for JSON: NaN and infinity become None and are named in the detail."""
        value = self.value
        if value is None or math.isfinite(value):
            return asdict(self)
        detail = f"{self.detail}; value is {value}" if self.detail else f"value is {value}"
        return asdict(self) | {"value": None, "detail": detail}


def at_most(
    name: str,
    value: float | None,
    threshold: float | None,
    detail: str = "",
    minimum: float | None = None,
) -> Check:
    """Make a check that passes if value <= threshold; NaN fails, None on either side is INFO.

    A value below `minimum` fails too: it is too good to be true.
    """
    check = _judge(name, value, threshold, "<=", detail)
    if minimum is None or value is None or threshold is None:
        return check
    if value < minimum:
        detail = first_few(
            [f"far below {minimum:.3g}, the least that is possible", *filter(None, [detail])], 2
        )
        return replace(check, verdict=Verdict.FAIL, detail=detail, minimum=minimum)
    return replace(check, minimum=minimum)


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


MINIMUMS = ("logits.top1", "logits.top1_sure", "logits.top5")
"""The checks whose value must reach the bound; in all others it must not exceed the bound."""

NO_BOUND = "none"
"""What a user writes instead of a bound so that the value is only reported."""

CUDA = ThresholdRow(
    (1e-2, 1e-5, 1e-5, 1e-5), (1e-2, 1e-2), 1e-5, 1e-5, 1e-4, 1.0, 1.001,
    "float16 arithmetic, which runtimes use on CUDA, done on a CPU against float32: relative "
    "1.5e-3, NMSE 1.1e-6, KL 2.5e-7 on sharp random models of 2 layers; wider for deeper ones; not "
    "yet measured on a GPU",
)  # fmt: skip
"""The bounds on CUDA, wherever they are wider than those of the stored type."""


class KnownBounds(Mapping[str, set[str]]):
    """The checks whose bounds can be set, by format and type as in "gguf Q8_0".

    It lists the types with bounds of their own. Types of other names, such as "gguf 4.85bpw", can
    be looked up too: they have the bounds of the type in which most of their bytes are stored.
    """

    def __init__(self) -> None:
        self._rows = {" ".join(key): set(row.bounds()) for key, row in _table().items()}

    def __getitem__(self, kind: str) -> set[str]:
        format_name, _, type_ = kind.partition(" ")
        same_format = (name for name in self._rows if name.startswith(f"{format_name} "))
        first = kind if kind in self._rows else next(same_format, "")
        if first != kind and not (first and load(format_name).is_type_name(type_)):
            raise KeyError(kind)
        return self._rows[first]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def known_bounds() -> KnownBounds:
    """The checks whose bounds can be set, by format and type."""
    return KnownBounds()


def thresholds_for(
    format: str,  # noqa: A002 - what a plan and a manifest call it
    type: str,  # noqa: A002
    device: str = "cpu",
    overrides: Mapping[str, float | None] | None = None,
) -> dict[str, float | None]:
    """Look up the bounds of an artefact, by name of check; None: the value is only reported.

    Args:
        format: The artefact's format.
        type: What most of its bytes are stored as.
        device: On a GPU no bound is tighter than the error of the float16 arithmetic there.
        overrides: Bounds that replace those of the table.

    Raises:
        InputError: The type has no bounds, no check of a name in `overrides` has a bound, or a
            value there is not a number.
    """
    table = _table()
    row = table.get((format, type))
    if row is None:
        known = ", ".join(" ".join(key) for key in table)
        raise InputError(f"no thresholds for {format} {type}; there are: {known}")
    bounds = row.bounds()
    if device != "cpu":
        for name, cuda_bound in CUDA.bounds().items():
            bound = bounds[name]
            if bound is not None and cuda_bound is not None:
                wider = min if name in MINIMUMS else max
                bounds[name] = wider(bound, cuda_bound)
    for name, value in (overrides or {}).items():
        if name not in bounds:
            raise InputError(f"threshold {name!r}: no such bound; there are {', '.join(bounds)}")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InputError(f"threshold {name}: {value!r} is not a number")
        bounds[name] = value
    return bounds


def parse_bound(check: str, value: object, known: Collection[str]) -> float | None:
    """Read the bound that a user gives for a check.

    Args:
        check: The name of the check.
        value: A finite number, or None or NO_BOUND so that the value is only reported.
        known: The names of the checks whose bounds can be set.

    Raises:
        ValueError: The check is not in `known`, or the value is not a number.
    """
    if check not in known:
        raise ValueError(f"no check {check!r} has a bound to set; there are {', '.join(known)}")
    if value is None or value == NO_BOUND:
        return None
    try:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            bound = float(value)
            if math.isfinite(bound):
                return bound
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{check}: {value!r} is not a number, nor {NO_BOUND} to only report it")


def _table() -> dict[tuple[str, str], ThresholdRow]:
    """The rows of all formats, by (format, stored type)."""
    return {(f.name, kind): row for f in formats() for kind, row in f.thresholds.items()}
