"""The sentence that ends a verification: ship the artefact or do not, and why.

A cause follows from the pattern of the failed checks. Weights that differ in a file that has
another SHA-256 than its manifest says were changed later; in a file that is as it was written, the
conversion was wrong. A runtime is to blame only if everything that is stored is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cgconvert.errors import first_few
from cgconvert.verification.provenance import is_other_source, is_source_change
from cgconvert.verification.thresholds import Check, Verdict
from cgconvert.verification.weights import TensorError
from cgconvert.version import __version__

__all__ = ["Subject", "conclusion", "total"]

NAMED = 2
"""Tensors that a sentence names; the number of the rest follows."""

BFLOAT16_TYPES = ("BF16", "bfloat16")
"""Types in which the numbers of nearly every source are rounded."""

STORED = ("weights.", "settings", "tokenizer.", "end_of_text", "context", "vocabulary", "padding")
"""Beginnings of the names of checks that judge what is in the files."""

ORDER = (
    "reference", "source.groups", "files", "weights.tensors", "weights.geometry", "weights.finite",
    "weights.equal", "weights.error", "weights.adjusted", "settings", "tokenizer.files",
    "witness.logits", "end_of_text", "context", "vocabulary", "tokenizer.ids",
    "tokenizer.round_trip", "padding", "finite", "runtime", "runtime.nmse", "runtime.", "cache",
    "batch", "generation", "witness.", "logits.", "calibration.loss", "provenance",
)  # fmt: skip
"""The order of failed checks: the sentence states the first, because the others may follow from it.
An entry that ends in a full stop stands for all checks whose names begin with it."""


@dataclass(frozen=True)
class Subject:
    """What a conclusion is drawn from: an artefact, its runtime and the outcome of its checks.

    Attributes:
        path: The artefact, as the user named it.
        type: The type that most of its bytes are stored in.
        runtime: The runtime's name, version and device, as in the report.
        checks: All checks.
        tensors: The errors of its tensors.
        not_compared: What a quick verification left out, in words; empty if it was a whole one.
    """

    path: str
    type: str
    runtime: Mapping[str, Any]
    checks: Sequence[Check]
    tensors: Sequence[TensorError]
    not_compared: str = ""

    def named(self, verdict: Verdict) -> dict[str, Check]:
        """The checks with this verdict, by name."""
        return {check.name: check for check in self.checks if check.verdict == verdict}

    @property
    def wrong_tensors(self) -> list[str]:
        """The names of the tensors that differ from the source by more than they may."""
        return [error.name for error in self.tensors if error.is_wrong]

    @property
    def has_runtime(self) -> bool:
        """Whether the runtime is installed."""
        return "missing" not in self.runtime


@dataclass(frozen=True)
class Cause:
    """A pattern of failed checks, why it comes about, and what to do."""

    applies: Callable[[Subject, str, Mapping[str, Check]], bool]
    text: str


def conclusion(subject: Subject) -> str:
    """Say in one sentence whether to ship the artefact, and why."""
    failed = subject.named(Verdict.FAIL)
    if not failed:
        return _praise(subject)
    if not subject.has_runtime:
        failed.pop("runtime", None)
        if not failed:
            return (
                f"Do not ship {subject.path} yet: what is stored is right, but it was not run: "
                f"{subject.runtime['missing']}."
            )
    lead = _lead(failed)
    if lead == "reference":  # a sentence of its own, that says what to do
        return f"Do not ship {subject.path}: {failed[lead].detail}."
    cause = next(cause.text for cause in CAUSES if cause.applies(subject, lead, failed))
    values = {"runtime": subject.runtime["name"], "version": __version__, "type": subject.type}
    return f"Do not ship {subject.path}: {_fact(subject, failed[lead])}: {cause.format(**values)}."


def total(
    verdicts: Sequence[tuple[str, Verdict]], missing: Sequence[str] = (), *, quick: bool = False
) -> str:
    """Say in one sentence which of several artefacts to ship.

    Args:
        verdicts: The path and the verdict of each artefact.
        missing: Paths of the artefacts that failed only because their runtime is not there.
        quick: Whether only a part was compared.
    """
    failed = [path for path, verdict in verdicts if verdict == Verdict.FAIL]
    if not failed:
        condition = " only after a whole verification" if quick else ""
        return f"Ship all {len(verdicts)} artefacts{condition}."
    sentence = f"Do not ship {', '.join(failed)} ({len(failed)} of {len(verdicts)} artefacts)"
    if missing:
        sentence += f"; not run: {', '.join(missing)}"
    return f"{sentence}."


def _lead(failed: Mapping[str, Check]) -> str:
    """The name of the check that the sentence states."""
    for entry in ORDER:
        for name in failed:
            if name == entry or (entry.endswith(".") and name.startswith(entry)):
                return name
    return next(iter(failed))


def _fact(subject: Subject, check: Check) -> str:
    """State what is wrong, as a clause."""
    wrong, runtime = subject.wrong_tensors, subject.runtime["name"]
    measured = f"{check.name} is {_short(check.value)}"
    if check.threshold is not None:
        measured += f", not {check.comparison} {_short(check.threshold)}"
    if check.name in ("weights.equal", "weights.error", "weights.adjusted") and wrong:
        verb = "differs" if len(wrong) == 1 else "differ"
        return f"{_listed(wrong)} {verb} from the source"
    facts = {
        "source.groups": f"the source was read with the wrong number of groups ({check.detail})",
        "weights.finite": f"numbers are not finite ({check.detail})",
        "witness.logits": "cgconvert's reference and transformers compute different logits from "
        "the source",
        "runtime": f"{runtime} could not run it ({check.detail})",
        "cache": f"{runtime} gives other logits if the same text is fed in pieces ({measured})",
        "batch": f"{runtime} gives other logits if the same text is part of a batch ({measured})",
        "calibration.loss": check.detail
        if check.value is None
        else f"it loses more than was measured when it was calibrated ({measured})",
        "generation": f"{runtime} generates other text than the stored weights ({check.detail})",
    }
    if check.name in facts:
        return facts[check.name]
    if check.name.startswith("runtime."):
        return f"{runtime} does not compute what is stored ({measured})"
    if check.name.startswith("logits."):
        return f"{subject.type} lost more than it may ({measured})"
    first = check.detail.split("; ")[0]
    return first or measured


def _short(value: float | None) -> str:
    return "missing" if value is None else f"{value:.3g}"


def _listed(names: Sequence[str]) -> str:
    """Write names as "a", "a and b", "a, b and 3 more tensors"."""
    if len(names) == NAMED:
        return " and ".join(names)
    more = len(names) - NAMED
    tensors = "tensor" if more == 1 else "tensors"
    return first_few(names, NAMED, separator=", ", conjunction=" and ") + (
        f" {tensors}" if more > 0 else ""
    )


def _is_stored(lead: str) -> bool:
    return lead.startswith(STORED)


def _changed_later(subject: Subject, lead: str, failed: Mapping[str, Check]) -> bool:
    return "provenance" in failed and not is_source_change(failed["provenance"])


def _provenance(subject: Subject) -> Check | None:
    return next((check for check in subject.checks if check.name == "provenance"), None)


def _has_other_source(subject: Subject) -> bool:
    check = _provenance(subject)
    return check is not None and is_other_source(check)


def _has_no_manifest(subject: Subject) -> bool:
    check = _provenance(subject)
    return check is None or (check.verdict == Verdict.WARNING and check.value is None)


def _is_below_minimum(failed: Mapping[str, Check]) -> bool:
    """Whether a value is below its minimum: better than any artefact of this source can be."""
    return any(
        check.minimum is not None and check.value is not None and check.value < check.minimum
        for check in failed.values()
    )


CAUSES: tuple[Cause, ...] = (
    Cause(
        lambda s, lead, f: lead == "source.groups",
        "read it with mp_num auto and convert again",
    ),
    Cause(
        lambda s, lead, f: lead == "files",
        "it is not what was checked; remove it, or convert again into an empty folder",
    ),
    Cause(
        lambda s, lead, f: lead == "provenance" and is_source_change(f[lead]),
        "nothing else differs; convert again, or restore the source",
    ),
    Cause(
        lambda s, lead, f: lead == "provenance",
        "nothing that was compared differs; convert again, or restore the files",
    ),
    Cause(
        lambda s, lead, f: "provenance" in f and is_source_change(f["provenance"]),
        "the source was changed after the conversion; convert again",
    ),
    Cause(
        lambda s, lead, f: _is_stored(lead) and _changed_later(s, lead, f),
        "the file was changed after it was written; convert again",
    ),
    Cause(
        lambda s, lead, f: _is_stored(lead) and _has_other_source(s),
        "the reference is not the source that its manifest names; verify it with that one, or "
        "convert the reference",
    ),
    Cause(
        lambda s, lead, f: _is_stored(lead) and _has_no_manifest(s),
        "nothing says how it was made; convert the reference with cgconvert",
    ),
    Cause(
        lambda s, lead, f: _is_stored(lead),
        "the conversion wrote it this way; convert again with cgconvert {version}, and report a "
        "bug if it stays",
    ),
    Cause(
        lambda s, lead, f: lead.startswith("witness."),
        "one of the two reads the source wrongly; report a bug",
    ),
    Cause(
        lambda s, lead, f: lead.startswith("logits.") and _is_below_minimum(f),
        "no correct artefact is so much better than its source; give the right reference",
    ),
    Cause(
        lambda s, lead, f: lead.startswith("logits."),
        "the file and the runtime are correct, but the type is too small; take more bits, "
        "calibrate, or allow it with another threshold",
    ),
    Cause(
        lambda s, lead, f: lead == "calibration.loss" and f[lead].value is None,
        "the manifest was changed; bring it back, or quantize again",
    ),
    Cause(
        lambda s, lead, f: lead == "calibration.loss" and not _changed_later(s, lead, f),
        "its matrices are not those that were calibrated; quantize again with cgconvert {version}",
    ),
    Cause(
        lambda s, lead, f: _changed_later(s, lead, f),
        "the file was changed after it was written; convert again",
    ),
    Cause(
        lambda s, lead, f: True,
        "every stored number is right, so the fault is in {runtime} or its build; try another "
        "version or another runtime",
    ),
)
"""The first cause that applies is stated."""


def _praise(subject: Subject) -> str:
    """The sentence of an artefact without a failed check."""
    passed, warnings = subject.named(Verdict.PASS), subject.named(Verdict.WARNING)
    runtime = subject.runtime["name"]
    if "weights.error" in passed:
        stored = f"every stored number is the source's within the rounding of {subject.type}"
        computes = f"{runtime} loses no more than {subject.type} may"
    else:
        stored = "every stored number is the source's"
        if subject.type in BFLOAT16_TYPES:
            stored += " in bfloat16"
        witness = "transformers does" if "witness.logits" in passed else "the reference does"
        computes = f"{runtime} computes what {witness}"
        if witness.startswith(runtime):
            computes = f"{runtime} computes the same from both"
    if subject.not_compared:
        sentence = (
            f"Ship {subject.path} only after a whole verification: no fault is in its "
            f"files, and {runtime} computes one prompt correctly, but quick: "
            f"{subject.not_compared} were not compared"
        )
    else:
        sentence = f"Ship {subject.path}: {stored}, and {computes}"
    if warnings:
        details = [f"{name}: {check.detail}" for name, check in warnings.items()]
        sentence += f"; but mind {'; '.join(details)}"
    return f"{sentence}."
