"""The conversions by name: from a checkpoint and options to a plan, output folder included.

Commands and recipe steps both come through here, so they mean the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cgconvert.artefact import OUT
from cgconvert.checkpoint.checkpoint import Checkpoint
from cgconvert.errors import UsageError
from cgconvert.stream.plan import Plan

__all__ = ["CONVERSIONS", "quantize", "to_gguf", "to_hf", "to_onnx"]

SHARD_BYTES = 5 * 10**9


def to_hf(
    checkpoint: Checkpoint,
    output: Path | None = None,
    *,
    dtype: str = "float16",
    layout: str = "codegen",
    max_shard_size: int = SHARD_BYTES,
) -> Plan:
    """safetensors, config, tokenizer, generation config and model card."""
    from cgconvert.formats import huggingface

    folder = {"codegen": "hf", "phi": "hf-phi"}[layout]
    return huggingface.plan(
        checkpoint,
        output or OUT / checkpoint.name / folder,
        dtype=dtype,
        layout=layout,
        max_shard_size=max_shard_size,
    )


def to_onnx(
    checkpoint: Checkpoint,
    output: Path | None = None,
    *,
    dtype: str = "float32",
    bits: int | None = None,
    block_size: int | None = None,
    symmetric: bool | None = None,
    accuracy_level: int | None = None,
    client: str = "any",
    target: str = "cpu",
) -> Plan:
    """A decoder with KV-cache inputs and outputs.

    Block size, symmetry and accuracy level are options of `bits`. Raises UsageError where they
    come without it.
    """
    from cgconvert.formats import onnx

    blocks = _given(block_size=block_size, symmetric=symmetric, accuracy_level=accuracy_level)
    if blocks and not bits:
        raise UsageError(f"{_option(blocks)} is an option of quantized matrices: add --bits 4 or 8")
    folder = "onnx" + (f"-int{bits}" if bits else "") + ("-fp16" if dtype == "float16" else "")
    folder += ("" if client == "any" else "-js") + ("" if target == "cpu" else f"-{target}")
    output = output or OUT / checkpoint.name / folder
    return onnx.plan(
        checkpoint, output, dtype=dtype, bits=bits, client=client, target=target, **blocks
    )


def to_gguf(checkpoint: Checkpoint, output: Path | None = None, *, type: str = "F16") -> Plan:  # noqa: A002
    """A file for llama.cpp, architecture phi2."""
    from cgconvert.formats import gguf

    default = OUT / checkpoint.name / "gguf" / gguf.file_name(checkpoint, type)
    output = output or default
    if output.suffix != ".gguf":
        raise UsageError(f"{output}: a GGUF file's name ends in .gguf")
    return gguf.plan(checkpoint, output, type=type)


def quantize(
    checkpoint: Checkpoint,
    output: Path | None = None,
    *,
    bits: int,
    format: str = "gguf",  # noqa: A002
    block_size: int | None = None,
    symmetric: bool | None = None,
    accuracy_level: int | None = None,
) -> Plan:
    """4 or 8 bits a weight: GGUF Q4_0 or Q8_0, ONNX MatMulNBits.

    The last three are for ONNX, see `to_onnx`. Raises UsageError where they come with GGUF.
    """
    blocks = _given(block_size=block_size, symmetric=symmetric, accuracy_level=accuracy_level)
    if format == "onnx":
        return to_onnx(checkpoint, output, bits=bits, **blocks)
    if blocks:
        raise UsageError(f"{_option(blocks)} is an option of --format onnx; GGUF's types have none")
    return to_gguf(checkpoint, output, type={4: "Q4_0", 8: "Q8_0"}[bits])


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given; the others have their format's default."""
    return {name: value for name, value in options.items() if value is not None}


def _option(given: Iterable[str]) -> str:
    return "--" + next(iter(given)).replace("_", "-")


CONVERSIONS: dict[str, Callable[..., Plan]] = {
    "to-hf": to_hf,
    "to-onnx": to_onnx,
    "to-gguf": to_gguf,
    "quantize": quantize,
}
