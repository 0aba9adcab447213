"""The result of a verification, its JSON object, and how all reports word a number and a bound.

JUnit and HTML are drawn from the JSON object alone, so that they cannot say anything else. It is,
in schema 1 (a key is never renamed or given another meaning without a new number; new keys may
come):

    schema      1
    tool        {name, version}
    verdict     pass, warning or fail: the worst of all
    sentence    what to ship and why, in a sentence on all artefacts
    artefacts   one object for each artefact:
      artefact    {path, format, type, files: {relative path: sha256}}
      source      {name, layout, sha256} of the checkpoint it is compared with
      reference   {weights, compute, device}: torch's names of the types the source's numbers had
                  (float16: after rounding, if they were wider) and were computed in
      cache       {allowed, used, for}: whether anything was allowed to come from cgconvert's
                  cache, whether anything did, and what: a list of words
      runtime     {name, version, device}; `missing` if it is not installed: what to install
      prompts     {sha256, sequences, tokens, lengths, texts}: sha256 of the prompts' texts; the
                  number of sequences and of tokens whose logits were compared, and each
                  sequence's length. The user's texts come after the prompts: texts is [{name,
                  sha256, sequences, tokens}], sha256 of the file's bytes ("stdlib": of all its
                  files)
      texts       {sha256, count} of the texts the tokenizers were compared on
      checks      [{name, value, threshold, comparison, verdict, detail, minimum}]: value is null
                  if there was nothing to measure or it is not finite, threshold null if none is
                  demanded; comparison is "<=" or ">="; verdict is pass, info, warning or fail;
                  minimum is what a value must reach beside "<=", null for no such bound
      series      {name: [value or null]} of three significant digits: "logits.kl" is KL(reference
                  || artefact) in nats at every position, prompts one after the other; null if it
                  is not finite; no such key if the logits could not be compared
      tensors     [{name, type, size, nonfinite, differing, relative_rms, worst, too_exact}] in the
                  artefact's order, those that are there in their shape: type as stored; nonfinite
                  and differing count values (see weights.finite, weights.equal); relative_rms is
                  ||stored - source|| / ||source||; worst is the largest error of a quantized or
                  adjusted tensor as a multiple of its bound (see weights.error,
                  weights.adjusted), null for other tensors; a number that is not finite is null;
                  too_exact says that it is nearer to the source than its type can be
      quick       true if only a part was compared
      not_compared  what a quick verification leaves out, in words; empty if it was a whole one
      verdict     pass, warning or fail
      sentence    ship the artefact or do not, and why
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cgconvert.escaping import escaped, json_escaped, printable
from cgconvert.verification.report.conclusion import Subject, conclusion, total
from cgconvert.verification.thresholds import Check, Verdict, worst_verdict
from cgconvert.verification.weights import TensorError
from cgconvert.version import __version__

__all__ = [
    "NO_CACHE", "SCHEMA", "SEVERITY", "SUMMARY", "Report", "as_json", "as_json_object",
    "as_printable_object", "bound",
    "cache_description", "number", "rounded", "run_description", "total_sentence",
    "worst_checks_first", "worst_reports_first", "xml_safe",
]  # fmt: skip

SCHEMA = 1

SUMMARY: Mapping[str, str] = {
    "logits.kl_mean": "mean KL",
    "runtime.relative_error": "rel. error",
    "logits.top1": "top-1",
    "generation": "other tokens",
}
"""The checks whose values stand for an artefact in a summary, and the heads of their columns."""

NO_CACHE: Mapping[str, Any] = {"allowed": False, "used": False, "for": ()}
"""What a report says of the cache where it was not to be used."""

# All characters that XML 1.0 forbids (section 2.2, Char): the name of a file may hold any.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Report:
    """One artefact's verification; the fields are those of the JSON object described above."""

    artefact: Mapping[str, Any]
    source: Mapping[str, Any]
    reference: Mapping[str, str]
    runtime: Mapping[str, str]
    prompts: Mapping[str, Any]
    texts: Mapping[str, Any]
    checks: tuple[Check, ...]
    series: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    tensors: tuple[TensorError, ...] = ()
    not_compared: str = ""
    cache: Mapping[str, Any] = field(default_factory=lambda: NO_CACHE)

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all checks; INFO counts as PASS."""
        return worst_verdict(self.checks)

    @property
    def passed(self) -> bool:
        """Whether no check failed; a warning is not a failure."""
        return self.verdict != Verdict.FAIL

    @property
    def is_only_unrun(self) -> bool:
        """Whether nothing failed but the search for the runtime, which is not installed."""
        failed = {check.name for check in self.checks if check.verdict == Verdict.FAIL}
        return "missing" in self.runtime and failed == {"runtime"}

    @property
    def has_wrong_reference(self) -> bool:
        """Whether it was compared with another model than the one it was made from."""
        return any(check.name == "reference" for check in self.checks)

    @property
    def sentence(self) -> str:
        """Ship the artefact or do not, and why."""
        return conclusion(
            Subject(
                path=str(self.artefact["path"]),
                type=str(self.artefact["type"]),
                runtime=self.runtime,
                checks=self.checks,
                tensors=self.tensors,
                not_compared=self.not_compared,
            )
        )

    def printable(self) -> Report:
        """This report with what a terminal would obey or nobody sees escaped in all its texts."""
        fields = ("artefact", "source", "reference", "runtime", "not_compared", "cache")
        checks = tuple(
            replace(check, name=printable(check.name), detail=printable(check.detail))
            for check in self.checks
        )
        return replace(
            self, checks=checks, **{name: escaped(getattr(self, name)) for name in fields}
        )

    def as_dict(self) -> dict[str, Any]:
        """This artefact's entry of `artefacts` in the JSON object."""
        return {
            **{k: v for k, v in asdict(self).items() if k not in ("checks", "series", "tensors")},
            "checks": [check.as_dict() for check in self.checks],
            "series": {name: list(values) for name, values in self.series.items()},
            "tensors": [_tensor_entry(tensor) for tensor in self.tensors],
            "quick": bool(self.not_compared),
            "verdict": self.verdict,
            "sentence": self.sentence,
        }


def as_json_object(reports: Sequence[Report]) -> dict[str, Any]:
    """The reports as one JSON object (see above), from which JSON, JUnit and HTML are written."""
    return {
        "schema": SCHEMA,
        "tool": {"name": "cgconvert", "version": __version__},
        "verdict": worst_verdict(check for report in reports for check in report.checks),
        "sentence": total_sentence(reports),
        "artefacts": [report.as_dict() for report in reports],
    }


def as_printable_object(reports: Sequence[Report]) -> dict[str, Any]:
    """The JSON object for what people read: its texts are escaped, but for their line breaks."""
    content: dict[str, Any] = escaped(as_json_object(reports), keep="\n\t")
    return content


def as_json(reports: Sequence[Report]) -> str:
    """The JSON object as text. The same reports give the same text."""
    text = json.dumps(as_json_object(reports), indent=2, ensure_ascii=False, allow_nan=False)
    return json_escaped(text) + "\n"


def number(value: float | None) -> str:
    """Write a number with four significant digits, a whole number with six; "-" for None."""
    if value is None:
        return "-"
    return f"{value:g}" if float(value).is_integer() else f"{value:.4g}"


def bound(comparison: str, threshold: float | None, minimum: float | None = None) -> str:
    """Write a bound, for example "<= 0.003" or "0.98 to 1.02"; empty if nothing is demanded."""
    if threshold is None:
        return ""
    if minimum is not None:
        return f"{number(minimum)} to {number(threshold)}"
    return f"{comparison} {number(threshold)}"


def total_sentence(reports: Sequence[Report]) -> str:
    """The sentence on all artefacts; of a single one, its own."""
    if len(reports) == 1:
        return reports[0].sentence
    ordered = worst_reports_first(reports)
    return total(
        [(str(report.artefact["path"]), report.verdict) for report in ordered],
        [str(report.artefact["path"]) for report in ordered if report.is_only_unrun],
        quick=any(report.not_compared for report in reports),
    )


SEVERITY = (Verdict.FAIL, Verdict.WARNING, Verdict.PASS, Verdict.INFO)
"""The order in which people read verdicts."""


def worst_reports_first(reports: Sequence[Report]) -> list[Report]:
    """Sort reports for people: failed, with warnings, passed."""
    return sorted(reports, key=lambda report: SEVERITY.index(report.verdict))


def worst_checks_first(checks: Sequence[Check]) -> list[Check]:
    """Sort checks for people: failed, warnings, passed, those that are only reported."""
    return sorted(checks, key=lambda check: SEVERITY.index(check.verdict))


def run_description(artefact: Mapping[str, Any]) -> str:
    """Say what ran in which runtime, for example "gguf Q8_0 in llama.cpp 0.3.36 on cpu".

    `artefact` is an entry of `artefacts` in the JSON object.
    """
    files, runtime = artefact["artefact"], artefact["runtime"]
    return (
        f"{files['format']} {files['type']} in {runtime['name']} {runtime['version']} "
        f"on {runtime['device']}"
    )


def cache_description(artefact: Mapping[str, Any]) -> str:
    """Say what was taken from the cache, for example "cache used for outputs of the reference".

    `artefact` is an entry of `artefacts` in the JSON object.
    """
    cache = artefact["cache"]
    if not cache["allowed"]:
        return "without the cache"
    return f"cache used for {', '.join(cache['for'])}" if cache["used"] else "cache not used"


def xml_safe(text: str) -> str:
    """Replace the characters that no XML document may hold by Python's escapes."""
    return _NOT_XML.sub(lambda match: ascii(match[0])[1:-1], text)


def rounded(values: Iterable[float]) -> list[float | None]:
    """Round a series for the report to three significant digits; NaN and infinity become None."""
    return [float(f"{v:.3g}") if math.isfinite(v) else None for v in map(float, values)]


def _tensor_entry(error: TensorError) -> dict[str, Any]:
    """An entry of `tensors`; None for NaN and infinity, which JSON does not have."""
    entry = asdict(error)
    entry["worst"] = entry.pop("error_over_bound")
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in entry.items()
    }
