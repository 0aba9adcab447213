"""How every report says a number, a bound and an artefact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["SUMMARY", "bound", "number", "ran"]

SUMMARY: Mapping[str, str] = {
    "logits.kl_mean": "mean KL",
    "runtime.relative_error": "rel. error",
    "logits.top1": "top-1",
    "generation": "other tokens",
}
"""The checks that stand for an artefact in one line, and the heads of their columns."""


def number(value: float | None) -> str:
    """Four significant digits; whole numbers as they are, "-" for none."""
    if value is None:
        return "-"
    return f"{value:g}" if float(value).is_integer() else f"{value:.4g}"


def bound(comparison: str, threshold: float | None) -> str:
    """For example "<= 0.003"; empty where nothing is demanded."""
    return "" if threshold is None else f"{comparison} {number(threshold)}"


def ran(artefact: Mapping[str, Any]) -> str:
    """What ran in what: "gguf Q8_0 in llama.cpp 0.3.36 on cpu", from a report's JSON object."""
    what, runtime = artefact["artefact"], artefact["runtime"]
    return (
        f"{what['format']} {what['type']} in {runtime['name']} {runtime['version']} "
        f"on {runtime['device']}"
    )
