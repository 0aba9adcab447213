"""`cgconvert generate`."""

from __future__ import annotations

import sys
from typing import Any

import click

from cgconvert.api.generation import stream_generate
from cgconvert.escaping import printable

__all__ = ["run"]


def run(artefact: str, prompt: str, **options: Any) -> None:
    """Print the continuation of a prompt, piece by piece.

    A terminal obeys control characters, and a model may write any: they are escaped there, and
    printed as they are into a file or a pipe.
    """
    is_terminal = sys.stdout.isatty()
    try:
        for piece in stream_generate(artefact, prompt, **options):
            text = printable(piece, keep="\n\t") if is_terminal else piece
            click.echo(text, nl=False, color=True)  # else click takes sequences out in a pipe
    except KeyboardInterrupt:
        click.echo()  # what was generated stays readable
        raise
    click.echo()
