"""The bounds that each stored type is held to, from the formats' tables or given by a user.

A bound is four to five times the worst that correct artefacts were measured at: random models of
the four published head sizes, 8 heads and 2 layers, nearly uniform attention and sharp (scores of
standard deviation 4), and the embedded trained model; whole contexts of 2,048, llama.cpp of 2026-11
with a float32 cache, onnxruntime 1.32, transformers 5.23, one thread:

    python -m tests.verify.false_alarms --seeds 2 --heads 8 --trained
        --vocabulary 6000 --new-tokens 32

The worst is in each row's `seen`, nearly always 6B's head with sharp attention. Other sources are
named there.

Small mistakes on weights of little effect (a layer-norm epsilon of 1e-6, rotary pairs in halves
under nearly uniform attention) come to an NMSE of 6e-5 and 2e-4: well above the float rows, below
what 8 bits and less lose. Those rows ask how much quantization lost, which logits can tell, and
not whether every weight is right, which they cannot: the stored weights are compared for that.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from cgconvert.errors import InputError
from cgconvert.formats.registry import formats
from cgconvert.formats.thresholds import ThresholdRow

__all__ = ["MINIMUMS", "NO_BOUND", "known_bounds", "parse_bound", "thresholds_for"]

MINIMUMS = ("logits.top1", "logits.top1_sure", "logits.top5")
"""Bounds that a value must reach; all others it must not exceed."""

NO_BOUND = "none"
"""Written for a bound: the value is reported and not judged."""

CUDA = ThresholdRow(
    (1e-2, 1e-5, 1e-5, 1e-5), (1e-2, 1e-2), 1e-5, 1e-5, 1e-4, 1.0, 1.001,
    "float16 arithmetic, which runtimes take there, done on a CPU against float32: relative "
    "1.5e-3, NMSE 1.1e-6, KL 2.5e-7 on sharp random models of 2 layers; wider for deeper ones; not "
    "yet measured on a GPU",
)  # fmt: skip


def known_bounds() -> dict[str, set[str]]:
    """The names of the bounds that can be set, by "format type"."""
    return {" ".join(key): set(row.bounds()) for key, row in _table().items()}


def thresholds_for(
    format: str,  # noqa: A002 - what a plan and a manifest call it
    type: str,  # noqa: A002
    device: str = "cpu",
    overrides: Mapping[str, float | None] | None = None,
) -> dict[str, float | None]:
    """Bounds by name of check, for an artefact of a format and stored type.

    On `device` "cuda" no bound is tighter than the error of the float16 arithmetic there.
    `overrides` replaces bounds by name; None only reports the value.

    Raises InputError for a type without a row, for a name that is not a bound's and for a value
    that is not a number.
    """
    table = _table()
    row = table.get((format, type))
    if row is None:
        known = ", ".join(" ".join(key) for key in table)
        raise InputError(f"no thresholds for {format} {type}; there are: {known}")
    bounds = row.bounds()
    if device == "cuda":
        for name, own in CUDA.bounds().items():
            bound = bounds[name]
            if bound is not None and own is not None:
                bounds[name] = min(bound, own) if name in MINIMUMS else max(bound, own)
    for name, value in (overrides or {}).items():
        if name not in bounds:
            raise InputError(f"threshold {name!r}: no such bound; there are {', '.join(bounds)}")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InputError(f"threshold {name}: {value!r} is not a number")
        bounds[name] = value
    return bounds


def parse_bound(check: str, value: object, known: Collection[str]) -> float | None:
    """Read the bound that a user gives for one of the checks `known`: a number or NO_BOUND.

    Raises ValueError with what is wrong with it.
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
    """The rows of all formats, by format and stored type."""
    return {(f.name, kind): row for f in formats() for kind, row in f.thresholds.items()}
