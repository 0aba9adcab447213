"""`cgconvert to-hf`."""

from __future__ import annotations

from pathlib import Path

import click

from cgconvert import api as convert
from cgconvert.cli.convert import converting
from cgconvert.cli.options import SIZE
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.write.plan import Plan

__all__ = ["command"]


@click.command("to-hf")
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
@converting()
def command(
    checkpoint: Checkpoint,
    output: Path | None,
    dtype: str,
    layout: str,
    max_shard_size: int,
) -> Plan:
    """Write SOURCE as Hugging Face safetensors with configuration, tokenizer and model card.

    \b
    Example:
      cgconvert to-hf checkpoints/codegen-350M-mono.tar.gz --layout phi
    """
    return convert.to_hf(
        checkpoint, output, dtype=dtype, layout=layout, max_shard_size=max_shard_size
    )
