"""`cgconvert to-hf`."""

from __future__ import annotations

from pathlib import Path

import click

from cgconvert import convert
from cgconvert.checkpoint.read import ReadOptions, read
from cgconvert.cli.convert import carry_out
from cgconvert.cli.options import SIZE, WriteOptions, common, output, reading, writing

__all__ = ["command"]


@click.command("to-hf")
@click.argument("source")
@output
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    default="float16",
    show_default=True,
    help="Type of the stored weights.",
)
@click.option(
    "--layout",
    type=click.Choice(["codegen", "phi"]),
    default="codegen",
    show_default=True,
    help="CodeGenForCausalLM, or the same model for PhiForCausalLM and what serves Phi.",
)
@click.option(
    "--max-shard-size", type=SIZE, default="5GB", show_default=True, help="Split larger weights."
)
@writing
@reading
@common
def command(
    source: str,
    output: Path | None,
    dtype: str,
    layout: str,
    max_shard_size: int,
    how: WriteOptions,
    options: ReadOptions,
) -> None:
    """Write SOURCE as Hugging Face safetensors with configuration, tokenizer and model card.

    \b
    Example:
      cgconvert to-hf checkpoints/codegen-350M-mono.tar.gz --layout phi
    """
    checkpoint = read(source, options)
    plan = convert.to_hf(
        checkpoint, output, dtype=dtype, layout=layout, max_shard_size=max_shard_size
    )
    carry_out(plan, checkpoint, how)
