"""`cgconvert to-onnx`."""

from __future__ import annotations

from pathlib import Path

import click

from cgconvert import convert
from cgconvert.checkpoint.checkpoint import Checkpoint
from cgconvert.cli.convert import converting
from cgconvert.stream.plan import Plan

__all__ = ["command"]


@click.command("to-onnx")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Type of weights and arithmetic.",
)
@converting()
def command(
    checkpoint: Checkpoint,
    output: Path | None,
    dtype: str,
) -> Plan:
    """Write SOURCE as an ONNX decoder with KV-cache inputs and outputs.

    The folder is a whole repository: onnxruntime, onnxruntime-genai, optimum and transformers.js
    load it as it is.

    \b
    Example:
      cgconvert to-onnx codegen-6B-mono
    """
    return convert.to_onnx(checkpoint, output, dtype=dtype)
