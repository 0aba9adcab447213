"""`cgconvert to-onnx`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cgconvert import api as convert
from cgconvert.cli.convert import converting
from cgconvert.cli.options import blocks
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.write.plan import Plan

__all__ = ["command"]


@click.command("to-onnx")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Type of weights and arithmetic.",
)
@click.option("--bits", type=click.Choice(["4", "8"]), help="Quantize the matrices.")
@blocks
@click.option(
    "--client",
    type=click.Choice(["any", "transformers.js"]),
    default="any",
    show_default=True,
    help="transformers.js: it asks for the last logits alone; optimum cannot load such a graph.",
)
@click.option(
    "--target",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="cuda, with --dtype float16: for flash attention; batches are padded after the prompt.",
)
@converting()
def command(
    checkpoint: Checkpoint,
    output: Path | None,
    bits: str | None,
    **variant: Any,
) -> Plan:
    """Write SOURCE as an ONNX decoder with KV-cache inputs and outputs.

    The folder is a whole repository: onnxruntime, onnxruntime-genai, optimum and transformers.js
    load it as it is.

    \b
    Example:
      cgconvert to-onnx codegen-6B-mono
    """
    return convert.to_onnx(checkpoint, output, bits=int(bits) if bits else None, **variant)
