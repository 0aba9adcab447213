"""`cgconvert quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cgconvert import convert
from cgconvert.artefact import OUT, find_all
from cgconvert.checkpoint.checkpoint import Checkpoint
from cgconvert.cli.convert import converting
from cgconvert.cli.options import blocks
from cgconvert.errors import UsageError
from cgconvert.stream.plan import Plan

__all__ = ["command"]

UNQUANTIZED = ("float32", "f32", "float16", "f16", "bfloat16", "bf16")
"""Stored types that can be a source, the widest first."""


def _only_source() -> str:
    """An unquantized artefact under ./out, where all that are there come from one model."""
    found = [artefact for artefact in find_all(OUT) if artefact.type.lower() in UNQUANTIZED]
    names = sorted({artefact.name for artefact in found})
    if not found:
        raise UsageError(
            f"nothing to quantize under ./{OUT}; type the source: cgconvert quantize SOURCE "
            "--bits 4 (for example codegen-350M-mono)"
        )
    if len(names) > 1:
        raise UsageError(
            f"several models under ./{OUT} ({', '.join(names)}); type which: "
            f"cgconvert quantize {found[0].path} --bits 4"
        )
    # The widest type; of equals the Hugging Face folder.
    best = min(found, key=lambda a: (UNQUANTIZED.index(a.type.lower()), a.format != "huggingface"))
    return str(best.path)


@click.command("quantize")
@click.option("--bits", type=click.Choice(["4", "8"]), required=True, help="Bits a weight.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["gguf", "onnx"]),
    default="gguf",
    show_default=True,
    help="GGUF Q4_0 or Q8_0, or ONNX MatMulNBits.",
)
@blocks
@converting(_only_source)
def command(
    checkpoint: Checkpoint,
    output: Path | None,
    bits: str,
    kind: str,
    **layout: Any,
) -> Plan:
    """Write SOURCE in 4 or 8 bits. Without SOURCE: the one unquantized model under ./out.

    \b
    Example:
      cgconvert quantize codegen-350M-mono --bits 4
    """
    return convert.quantize(checkpoint, output, bits=int(bits), format=kind, **layout)
