"""`cgconvert generate`."""

from __future__ import annotations

from typing import Any

import click

from cgconvert.api.declarations import GENERATE
from cgconvert.api.generation import stream_generate
from cgconvert.cli.options import click_options

__all__ = ["command"]

HELP = """\
Continue PROMPT with ARTEFACT, in the runtime people use for its format.

\b
Example:
  cgconvert generate out/codegen-tiny-mono/hf "def hello_world():"
"""


def _run(artefact: str, prompt: str, **options: Any) -> None:
    try:
        for piece in stream_generate(artefact, prompt, **options):
            click.echo(piece, nl=False)
    except KeyboardInterrupt:
        click.echo()  # what was generated stays readable
        raise
    click.echo()


command = click.Command(
    "generate",
    params=[click.Argument(["artefact"]), click.Argument(["prompt"]), *click_options(*GENERATE)],
    callback=_run,
    help=HELP,
)
