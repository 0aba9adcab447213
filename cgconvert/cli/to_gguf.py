"""`cgconvert to-gguf`."""

from __future__ import annotations

from pathlib import Path

import click

from cgconvert import convert
from cgconvert.checkpoint.read import ReadOptions, read
from cgconvert.cli.convert import carry_out
from cgconvert.cli.options import WriteOptions, common, output, reading, writing

__all__ = ["command"]


@click.command("to-gguf")
@click.argument("source")
@output
@click.option(
    "--type",
    "kind",
    type=click.Choice(["F32", "F16", "BF16", "Q8_0", "Q4_0"], case_sensitive=False),
    default="F16",
    show_default=True,
    help="Type of the matrices; norms and biases stay F32.",
)
@writing
@reading
@common
def command(
    source: str,
    output: Path | None,
    kind: str,
    how: WriteOptions,
    options: ReadOptions,
) -> None:
    """Write SOURCE as a GGUF file that an unmodified llama.cpp runs (architecture phi2).

    \b
    Example:
      cgconvert to-gguf codegen-350M-mono --type Q8_0
    """
    checkpoint = read(source, options)
    plan = convert.to_gguf(checkpoint, output, type=kind)
    carry_out(plan, checkpoint, how)
