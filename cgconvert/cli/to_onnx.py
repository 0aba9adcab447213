"""`cgconvert to-onnx`."""

from __future__ import annotations

from pathlib import Path

import click

from cgconvert import convert
from cgconvert.checkpoint.read import ReadOptions, read
from cgconvert.cli.convert import carry_out
from cgconvert.cli.options import blocks, common, output, reading, writing

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
@writing
@reading
@common
def command(
    source: str,
    output: Path | None,
    dtype: str,
    bits: str | None,
    block_size: int | None,
    symmetric: bool | None,
    accuracy_level: int | None,
    client: str,
    target: str,
    force: bool,
    dry_run: bool,
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
    plan = convert.to_onnx(
        checkpoint,
        output,
        dtype=dtype,
        bits=int(bits) if bits else None,
        block_size=block_size,
        symmetric=symmetric,
        accuracy_level=accuracy_level,
        client=client,
        target=target,
    )
    carry_out(plan, checkpoint, force=force, dry_run=dry_run)
