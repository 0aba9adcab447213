"""Options that several commands share, and how sizes are written."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cgconvert.formats.read import ReadOptions
from cgconvert.model.device import DEVICES
from cgconvert.runtimes import RUNTIMES

__all__ = [
    "SIZE",
    "Types",
    "WriteOptions",
    "blocks",
    "common",
    "device",
    "force",
    "output",
    "reading",
    "runtime",
    "verbosity",
    "writing",
]

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass
class Verbosity:
    """Whether a failure shows its traceback; known before the options are all parsed."""

    verbose: bool = False


verbosity = Verbosity()


def _set_verbose(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    verbosity.verbose = verbosity.verbose or value


def common(function: Callable[..., Any]) -> Callable[..., Any]:
    """--verbose, for every command."""
    return click.option(
        "-v",
        "--verbose",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_set_verbose,
        help="Show the traceback of a failure.",
    )(function)


def reading(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a user can say about a source; the command gets one `options: ReadOptions`."""

    def with_options(**values: Any) -> Any:
        names = ("tokenizer", "config", "mp_num", "step", "revision")
        return function(options=ReadOptions(**{n: values.pop(n) for n in names}), **values)

    with_options.__doc__ = function.__doc__
    with_options.__name__ = function.__name__
    # Click passes on the parameters that decorators below have left on the function.
    with_options.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    path = click.Path(exists=True, path_type=Path)
    for option in (
        click.option("--revision", help="Branch, tag or commit on the Hub."),
        click.option("--step", type=click.IntRange(0), help="Step of a Jaxformer run (the last)."),
        click.option(
            "--mp-num",
            type=click.IntRange(1),
            help="Groups in qkv_proj, where neither configuration nor family tells.",
        ),
        click.option("--config", type=path, help="Configuration to use instead of the source's."),
        click.option(
            "--tokenizer",
            type=path,
            help="Folder (tokenizer.json, or vocab and merges) to use instead of the source's.",
        ),
    ):
        with_options = option(with_options)
    return with_options


@dataclass(frozen=True)
class WriteOptions:
    """How a plan is to be carried out; see stream.execute."""

    force: bool = False
    dry_run: bool = False
    resume: bool = False
    allow_nonfinite: bool = False


def writing(function: Callable[..., Any]) -> Callable[..., Any]:
    """How outputs are written; the command gets one `how: WriteOptions`."""

    @functools.wraps(function)
    def with_options(**values: Any) -> Any:
        names = WriteOptions.__dataclass_fields__
        return function(how=WriteOptions(**{n: values.pop(n) for n in names}), **values)

    decorated: Callable[..., Any] = with_options
    for option in (
        click.option(
            "--allow-nonfinite",
            is_flag=True,
            help="Keep NaN, infinities and what overflows to them (not in quantized types).",
        ),
        click.option(
            "--resume",
            is_flag=True,
            help="Continue what an interrupted run has written, and keep it if this one is too.",
        ),
        click.option(
            "--dry-run", is_flag=True, help="Print the plan, its size and its needs; write nothing."
        ),
        force,
    ):
        decorated = option(decorated)
    return decorated


def blocks(function: Callable[..., Any]) -> Callable[..., Any]:
    """How ONNX's quantized matrices are laid out and computed; None where not given."""
    for option in (
        click.option(
            "--accuracy-level",
            type=int,
            help="ONNX: compute in int8 (4, as without it), float32 (1) or what suits (0).",
        ),
        click.option(
            "--symmetric",
            is_flag=True,
            default=None,
            help="ONNX: 4 bits without zero points, the numbers of GGUF's Q4_0. 8 bits have none.",
        ),
        click.option(
            "--block-size",
            type=int,
            help="ONNX: weights that share a scale, 16 to 256; 32 unless given.",
        ),
    ):
        function = option(function)
    return function


force: Decorator = click.option(
    "--force", is_flag=True, help="Replace an existing output, once the new one is complete."
)

output: Decorator = click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Where to write (under ./out/<name>)."
)


def device(what: str) -> Decorator:
    """Where `what` computes."""
    return click.option(
        "--device",
        type=click.Choice(DEVICES),
        default="auto",
        show_default=True,
        help=f"Where {what} computes; cuda is an error where there is none.",
    )


runtime: Decorator = click.option(
    "--runtime",
    type=click.Choice([name for table in RUNTIMES.values() for name in table]),
    help="Instead of the format's own.",
)


class Types(click.Choice[str]):
    """GGUF types in either case, shown and returned as llama.cpp writes them."""

    def __init__(self, choices: Sequence[str]) -> None:
        super().__init__(choices, case_sensitive=False)

    def normalize_choice(self, choice: Any, ctx: click.Context | None) -> str:
        return str(choice).upper()


class _Size(click.ParamType):
    name = "size"
    units = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}  # noqa: RUF012
    binary = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}  # noqa: RUF012

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", str(value).upper())
        size = 0
        if match and len(match[1]) < 20:
            size = int(float(match[1]) * (self.units | self.binary)[match[2] or ""])
        if size < 1:
            self.fail(f"{value!r} is not a size; write 5GB, 500MB or a number of bytes", param, ctx)
        return size


SIZE = _Size()
