"""A verification as one HTML page that needs nothing else: no script, no font, no request.

template.html.j2 is the page and report.css its style; this module has the filters and drawings
that the template needs beside the JSON object. Jinja2 escapes everything that is inserted, so a
name from a file cannot become markup, and a Content-Security-Policy forbids the page to load
anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import PurePath
from typing import Any
from xml.etree.ElementTree import Element, tostring

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from cgconvert.verification.report.advice import advice
from cgconvert.verification.report.model import (
    SEVERITY,
    SUMMARY,
    bound,
    number,
    run_description,
    xml_safe,
)
from cgconvert.verification.report.plots import (
    changed_tensors,
    is_wrong,
    kl_plot,
    positions_per_column,
    tensor_plot,
    worst_first,
)

__all__ = ["as_html", "stylesheet"]

PAST_TENSE = {"pass": "passed", "info": "info", "warning": "warning", "fail": "failed"}

WORST_SHOWN = 10
"""How many tensors the table of the worst tensors has."""


@dataclass(frozen=True)
class Figure:
    """A drawing as markup, and the text below it."""

    drawing: Markup
    caption: str


def as_html(report: Mapping[str, Any]) -> str:
    """Render the page from the JSON object (see model.py)."""
    return _template().render(report=report)


@cache
def stylesheet() -> str:
    """The text of report.css."""
    return files(__package__).joinpath("report.css").read_text(encoding="utf-8")


@cache
def _template() -> Template:
    """Load the template, with what it calls."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_finalize,
    )
    environment.filters |= {
        "advice": advice,
        "all_digits": repr,
        "divergence_figure": _divergence_figure,
        "number": number,
        "opening": _opening,
        "past_tense": PAST_TENSE.__getitem__,
        "provenance": _provenance,
        "run_description": run_description,
        "tensor_figure": _tensor_figure,
        "value_of": _value_of,
        "worst_first": worst_first,
        "worst_verdict_first": _worst_verdict_first,
    }
    environment.tests["wrong_tensor"] = is_wrong
    environment.globals |= {
        "bound": bound,
        "stylesheet": Markup(stylesheet()),
        "summary": SUMMARY,
        "worst_shown": WORST_SHOWN,
    }
    source = files(__package__).joinpath("template.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source)


def _finalize(value: object) -> object:
    """Escape control characters; Jinja2 calls this on every value before it escapes markup."""
    return value if isinstance(value, Markup) else xml_safe(str(value))


def _opening(report: Mapping[str, Any]) -> str:
    """Write the sentence below the title: how many artefacts passed, and which failed."""
    artefacts = report["artefacts"]
    failed = [a["artefact"]["path"] for a in artefacts if a["verdict"] == "fail"]
    sentence = f"{len(artefacts) - len(failed)} of {len(artefacts)} artefacts passed"
    if failed:
        sentence += f"; failed: {', '.join(failed)}"
    warnings = sum(a["verdict"] == "warning" for a in artefacts)
    if warnings:
        sentence += f"; with warnings: {warnings}"
    return f"{sentence}."


def _worst_verdict_first(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Sort artefacts or checks as people read them: failed, with warnings, passed."""
    return sorted(entries, key=lambda entry: SEVERITY.index(entry["verdict"]))


def _value_of(checks: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The value of the check called `name`; None if there is no such check."""
    return next((check["value"] for check in checks if check["name"] == name), None)


def _divergence_figure(artefact: Mapping[str, Any]) -> Figure | None:
    """Draw the KL divergence at every position; None if logits were not compared."""
    values = artefact.get("series", {}).get("logits.kl")
    if not values:
        return None
    thresholds = {check["name"]: check["threshold"] for check in artefact["checks"]}
    mean, p99 = thresholds.get("logits.kl_mean"), thresholds.get("logits.kl_p99")
    labels = {"p99 <=": p99, "mean <=": mean}
    bounds = {label: value for label, value in labels.items() if value is not None}
    caption = "KL(reference || artefact) in nats at every position"
    per_column = positions_per_column(len(values))
    if per_column > 1:
        caption += f", {per_column} of them in a column: their range, and their mean as a point"
    if p99 is not None:
        above = sum(value is not None and value > p99 for value in values)
        caption += f"; {above} of {len(values)} above the bound on the 99th percentile"
    not_finite = sum(value is None for value in values)
    if not_finite:
        caption += f"; {not_finite} not finite, marked at the top"
    drawing = kl_plot(values, bounds, _sequences(artefact["prompts"]), p99)
    return Figure(_svg(drawing), f"{caption}.")


def _sequences(prompts: Mapping[str, Any]) -> list[tuple[str, int]]:
    """List (name, number of tokens) of each prompt, then of each of the user's texts as a whole."""
    texts = prompts.get("texts", ())
    count = prompts["sequences"] - sum(text["sequences"] for text in texts)
    named = [(f"prompt {i}", n) for i, n in enumerate(prompts["lengths"][:count], 1)]
    return named + [(PurePath(text["name"]).name, text["tokens"]) for text in texts]


def _tensor_figure(tensors: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Draw the errors of all tensors; None if every tensor has exactly the source's numbers."""
    unchanged = len(tensors) - len(changed_tensors(tensors))
    if unchanged == len(tensors):
        return None
    caption = "Relative error: ||stored - source|| / ||source||"
    if unchanged:
        caption += f"; {unchanged} of {len(tensors)} tensors have the source's numbers and no point"
    return Figure(_svg(tensor_plot(tensors)), f"{caption}.")


def _svg(drawing: Element) -> Markup:
    """Turn a drawing into markup; ElementTree escapes its texts."""
    return Markup(tostring(drawing, encoding="unicode", method="html"))


def _provenance(artefact: Mapping[str, Any]) -> dict[str, str]:
    """List the hashes and everything else that the JSON object says of the run, by name.

    All keys of these groups are shown, so a new key needs no change here.
    """
    rows = {f"sha256 of {name}": sha for name, sha in artefact["artefact"]["files"].items()}
    for group in ("source", "reference", "cache", "runtime", "prompts", "texts"):
        for key, value in artefact[group].items():
            rows[f"{group}: {key}"] = _flat(value) or "-"
    return rows


def _flat(value: Any) -> str:
    """Write a value of the JSON object on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flat(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        separator = "; " if any(isinstance(inner, Mapping) for inner in value) else ", "
        return separator.join(map(_flat, value))
    return str(value)
