"""The table of conversions: their names, options and help, without the code that converts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cgconvert.api.declarations import BUDGETS, NAME, QUANTIZE, QUANTIZE_HELP
from cgconvert.formats.registry import formats
from cgconvert.options import Option

if TYPE_CHECKING:
    from cgconvert.write.plan import LazyPlan

__all__ = ["Conversion", "conversions"]


@dataclass(frozen=True)
class Conversion:
    """A way to make an artefact: a command of the command line and a step of a recipe.

    Attributes:
        name: Its name, such as to-gguf.
        options: Its own options, beside those of reading and writing.
        help: What `--help` says, with an example.
        plan: Makes the plan from a checkpoint, an output path or None, and the options by name.
        exactly_one_of: Names of options of which one has to be given.
    """

    name: str
    options: tuple[Option, ...]
    help: str
    plan: Callable[..., LazyPlan]
    exactly_one_of: tuple[str, ...] = ()


def conversions() -> dict[str, Conversion]:
    """All conversions by name: one for each format that is written, then quantize."""
    table = [
        Conversion(format_.command, (*format_.options, NAME), format_.help, format_.plan)
        for format_ in formats()
    ]
    table.sort(key=lambda conversion: conversion.name)
    table.append(Conversion("quantize", (*QUANTIZE, NAME), QUANTIZE_HELP, _plan_quantized, BUDGETS))
    return {conversion.name: conversion for conversion in table}


def _plan_quantized(*arguments: Any, **options: Any) -> LazyPlan:
    # Not imported at the top: --help needs the table and not the code.
    from cgconvert.api.quantization import plan_quantized

    return plan_quantized(*arguments, **options)
