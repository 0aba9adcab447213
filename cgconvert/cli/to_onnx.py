"""`cgconvert to-onnx`."""

from __future__ import annotations

from pathlib import Path

import click

from cgconvert import convert
from cgconvert.checkpoint.read import ReadOptions, read
from cgconvert.cli.convert import carry_out
from cgconvert.cli.options import WriteOptions, common, output, reading, writing

__all__ = ["command"]


@click.command("to-onnx")
@click.argument("source")
@output
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Type of weights and arithmetic.",
)
@writing
@reading
@common
def command(
    source: str,
    output: Path | None,
    dtype: str,
    how: WriteOptions,
    options: ReadOptions,
) -> None:
    """Write SOURCE as an ONNX decoder with KV-cache inputs and outputs.

    The folder is a whole repository: onnxruntime, onnxruntime-genai, optimum and transformers.js
    load it as it is.

    \b
    Example:
      cgconvert to-onnx codegen-6B-mono
    """
    checkpoint = read(source, options)
    plan = convert.to_onnx(checkpoint, output, dtype=dtype)
    carry_out(plan, checkpoint, how)
