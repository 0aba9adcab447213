"""`cgconvert generate`."""

from __future__ import annotations

from typing import Any

import click

from cgconvert.api.generation import stream_generate

__all__ = ["run"]


def run(artefact: str, prompt: str, **options: Any) -> None:
    """Print the continuation of a prompt, piece by piece."""
    try:
        for piece in stream_generate(artefact, prompt, **options):
            click.echo(piece, nl=False)
    except KeyboardInterrupt:
        click.echo()  # what was generated stays readable
        raise
    click.echo()
