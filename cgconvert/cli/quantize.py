"""`cgconvert quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cgconvert import api as convert
from cgconvert.calibrate.preset import FAST, PRESETS
from cgconvert.calibrate.request import QUANTIZED
from cgconvert.cli.convert import converting
from cgconvert.cli.options import SIZE, Types, blocks, device
from cgconvert.errors import UsageError
from cgconvert.formats.artefact import OUT, find_all
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.write.plan import LazyPlan, Plan

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


def _pairs(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    found = []
    for value in values:
        pattern, equals, kind = value.rpartition("=")
        if not (pattern and equals and kind):
            raise click.BadParameter(
                f"{value!r} is not PATTERN=TYPE, as in blk.*.attn_v.weight=Q6_K"
            )
        found.append((pattern, kind.upper()))
    return tuple(found)


@click.command("quantize")
@click.option("--bits", type=click.Choice(["4", "8"]), help="Bits a weight; 4: as Q4_K_M's bytes.")
@click.option(
    "--type",
    "kind",
    type=Types(QUANTIZED),
    help="A GGUF type, or standard mix of types.",
)
@click.option("--max-size", type=SIZE, help="The largest file: 4.2GB, 500MB, or bytes.")
@click.option("--bpw", type=click.FloatRange(1, 16), help="Bits a weight, as 4.9.")
@click.option(
    "--max-kl",
    type=click.FloatRange(0, min_open=True),
    help="The smallest file that loses no more: nats a token.",
)
@click.option(
    "--tensor-type",
    multiple=True,
    metavar="PATTERN=TYPE",
    callback=_pairs,
    help="The type of matrices by name, as blk.*.attn_v.weight=Q6_K; repeatable.",
)
@click.option(
    "--effort",
    type=click.Choice([FAST, *PRESETS]),
    default="default",
    show_default=True,
    help="By the weights alone; fitted to a text; to more text, for longer.",
)
@click.option(
    "--calibration",
    metavar="FILE|none",
    help="The text; the calibration part of Python's standard library unless given.",
)
@click.option("--imatrix", metavar="FILE", help="llama.cpp's imatrix, in place of a text.")
@click.option("--save-imatrix", metavar="FILE", help="Write the text's imatrix for llama.cpp.")
@device("the fit to a text")
@click.option(
    "--format",
    "kind_of_file",
    type=click.Choice(["gguf", "onnx"]),
    default="gguf",
    show_default=True,
    help="GGUF for llama.cpp, or ONNX MatMulNBits.",
)
@blocks
@converting(_only_source)
def command(
    checkpoint: Checkpoint,
    output: Path | None,
    bits: str | None,
    kind: str | None,
    kind_of_file: str,
    **options: Any,
) -> Plan | LazyPlan:
    """Write SOURCE in fewer bits. Without SOURCE: the one unquantized model under ./out.

    \b
    Example:
      cgconvert quantize codegen-350M-mono --bits 4
      cgconvert quantize codegen-350M-mono --max-size 200MB
      cgconvert quantize codegen-350M-mono --type Q4_K_M --effort fast
    """
    given = int(bits) if bits else None
    return convert.quantize(
        checkpoint, output, bits=given, type=kind, format=kind_of_file, **options
    )
