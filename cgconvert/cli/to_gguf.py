"""`cgconvert to-gguf`."""

from __future__ import annotations

from pathlib import Path

import click

from cgconvert import api as convert
from cgconvert.cli.convert import converting
from cgconvert.cli.options import Types
from cgconvert.formats.gguf.types import TYPES
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.write.plan import Plan

__all__ = ["command"]


@click.command("to-gguf")
@click.option(
    "--type",
    "kind",
    type=Types(list(TYPES)),
    default="F16",
    show_default=True,
    help="Type of the matrices; norms and biases stay F32.",
)
@converting()
def command(
    checkpoint: Checkpoint,
    output: Path | None,
    kind: str,
) -> Plan:
    """Write SOURCE as a GGUF file that an unmodified llama.cpp runs (architecture phi2).

    Quantized types by the weights alone; `quantize` fits them to a text.

    \b
    Example:
      cgconvert to-gguf codegen-350M-mono --type Q8_0
    """
    return convert.to_gguf(checkpoint, output, type=kind)
