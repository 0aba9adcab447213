"""The commands: their help, arguments and options, and the names of the functions that do the work.

Help, mistakes of usage and completion need nothing else, so a function is imported only when its
command is carried out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import click

from cgconvert.api.conversion_table import Conversion, conversions
from cgconvert.api.declarations import (
    CACHE,
    DRY_RUNS,
    GENERATE,
    OUTPUT,
    READ,
    TENSORS,
    VERIFY,
    WRITE,
)
from cgconvert.cli.completion import complete_recipe, complete_source
from cgconvert.cli.options import click_options
from cgconvert.cli.other_tools import AnsweringCommand
from cgconvert.options import Option

__all__ = ["COMMANDS", "Command", "command", "command_names"]


@dataclass(frozen=True)
class Command:
    """A command that converts nothing.

    Attributes:
        function: "module:function"; it is called with the values of all parameters by name.
        help: What `--help` says, with an example after `\\b`.
        parameters: Makes its arguments, and options that only the command line has.
        options: Its declared options.
    """

    function: str
    help: str
    parameters: Callable[[], list[click.Parameter]]
    options: tuple[Option, ...]


RECIPE_SOURCE = Option(name="source", help="A source to use instead of the recipe's.")

CACHE_ACTIONS = ("list", "verify", "clear")

LIST_RECIPES = Option(
    name="list",
    type=bool,
    default=False,
    help="Show the shipped recipes: source, size, steps, what they write.",
)

COMMANDS: Mapping[str, Command] = {
    "verify": Command(
        "cgconvert.cli.verify:run",
        """\
Run ARTEFACT in its real runtime and compare it with the fp16 reference.

Without ARTEFACT: all artefacts under ./out. Exits with 4 if a check fails.

\b
Example:
  cgconvert verify out/codegen-350M-mono/onnx --report verdict.json
""",
        lambda: [click.Argument(["artefact"], required=False, type=click.Path(path_type=Path))],
        (*VERIFY, *READ, *CACHE),
    ),
    "inspect": Command(
        "cgconvert.cli.inspect:run",
        """\
Describe PATH: layout, geometry, tokenizer, origin, types and size.

\b
Example:
  cgconvert inspect codegen-tiny-mono
""",
        lambda: [
            click.Argument(["path"], shell_complete=complete_source),
            click.Option(["--json", "as_json"], is_flag=True, help="For a machine: schema 1."),
        ],
        (TENSORS, *READ, *CACHE),
    ),
    "generate": Command(
        "cgconvert.cli.generate:run",
        """\
Continue PROMPT with ARTEFACT, in the runtime people use for its format.

A source (a name of the family, a checkpoint, a Hub id) runs unconverted, in float32.

\b
Example:
  cgconvert generate out/codegen-tiny-mono/hf "def hello_world():"
  cgconvert generate codegen-350M-mono "def hello_world():"
""",
        lambda: [
            click.Argument(["artefact"], shell_complete=complete_source),
            click.Argument(["prompt"]),
        ],
        (*GENERATE, *CACHE),
    ),
    "run": Command(
        "cgconvert.cli.run:run",
        """\
Run the steps of a recipe in order.

RECIPE is a file, - for the standard input, or a name: of a shipped recipe (see --list) or of a
published model, which has the recipe of its size.

\b
Example:
  cgconvert run codegen-tiny-mono
  cgconvert run codegen-2B-multi
  cgconvert run codegen-350M-mono --source ./my-fine-tune
""",
        lambda: [
            click.Argument(
                ["recipe_file"], metavar="RECIPE", required=False, shell_complete=complete_recipe
            )
        ],
        (RECIPE_SOURCE, WRITE[0], *DRY_RUNS, LIST_RECIPES, *WRITE[1:], *READ, *CACHE),
    ),
    "clean": Command(
        "cgconvert.cli.clean:run",
        """\
List what interrupted runs have left in PATH and below it; --delete removes it.

PATH is a folder (the working folder unless given), or the output of a run that was interrupted.
Running the same command again continues it. The cache is not listed: see
cgconvert cache.

\b
Example:
  cgconvert clean
  cgconvert clean out --delete
""",
        lambda: [
            click.Argument(["path"], required=False, type=click.Path(path_type=Path), default="."),
            click.Option(["--delete"], is_flag=True, help="Remove what is listed."),
        ],
        (),
    ),
    "cache": Command(
        "cgconvert.cli.cache:run",
        """\
List, verify or clear the cache: $CGCONVERT_CACHE, or ~/.cache/cgconvert.

It keeps outputs of references, hashes of large files, and unpacked tarballs. Only what you wrote
yourself is believed: verify names what is not, and exits with 4. --no-cache leaves the cache out.

\b
Example:
  cgconvert cache
  cgconvert cache verify
  cgconvert cache clear
""",
        lambda: [
            click.Argument(
                ["action"], required=False, type=click.Choice(CACHE_ACTIONS), default="list"
            )
        ],
        (),
    ),
}
"""The commands that convert nothing, by name. The conversions stand before them in `--help`."""

DEFAULT_SOURCE = ("quantize",)
"""Conversions that find a source themselves if none is given."""


def command_names() -> list[str]:
    """The names of all commands, in the order of `--help`."""
    return [*conversions(), *COMMANDS]


def command(name: str) -> click.Command | None:
    """Make click's command of this name; None if there is none."""
    if name in COMMANDS:
        declared = COMMANDS[name]
        return AnsweringCommand(
            name,
            params=[*declared.parameters(), *click_options(*declared.options)],
            callback=partial(_call, declared.function),
            help=declared.help,
        )
    conversion = conversions().get(name)
    return None if conversion is None else _conversion_command(conversion)


def _conversion_command(conversion: Conversion) -> click.Command:
    """The command of a conversion: SOURCE, its own options and those of writing and reading."""
    options = (*conversion.options, OUTPUT, WRITE[0], *DRY_RUNS, *WRITE[1:], *READ, *CACHE)
    source = click.Argument(
        ["source"], required=conversion.name not in DEFAULT_SOURCE, shell_complete=complete_source
    )
    return AnsweringCommand(
        conversion.name,
        params=[source, *click_options(*options)],
        callback=partial(_call, "cgconvert.cli.conversions:run", conversion=conversion.name),
        help=conversion.help,
    )


def _call(function: str, *, cache: bool = True, **values: Any) -> None:
    """Carry out a command, with or without the cache; what it calls need not know."""
    # Not imported at the top: `--help` needs no cache.
    from cgconvert.io.cache import with_cache

    with with_cache(cache):
        resolve_name(function)(**values)
