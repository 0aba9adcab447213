"""The conversions by name: from a checkpoint and options to a plan, output folder included.

Commands and recipe steps both come through here, so they mean the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgconvert.errors import UsageError
from cgconvert.formats.registry import load
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.write.plan import LazyPlan, Plan

if TYPE_CHECKING:
    from cgconvert.formats.gguf.imatrix import Imatrix

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
    return load("huggingface").plan(
        checkpoint, output, dtype=dtype, layout=layout, max_shard_size=max_shard_size
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
    return load("onnx").plan(
        checkpoint,
        output,
        dtype=dtype,
        bits=bits,
        block_size=block_size,
        symmetric=symmetric,
        accuracy_level=accuracy_level,
        client=client,
        target=target,
    )


def to_gguf(
    checkpoint: Checkpoint,
    output: Path | None = None,
    *,
    type: str = "F16",  # noqa: A002
    tensor_type: Sequence[tuple[str, str]] = (),
    importance: Imatrix | None = None,
) -> Plan:
    """A file for llama.cpp, architecture phi2. `tensor_type` are patterns of names and types."""
    return load("gguf").plan(
        checkpoint, output, type=type, fixed=tensor_type, importance=importance
    )


def quantize(
    checkpoint: Checkpoint,
    output: Path | None = None,
    *,
    bits: int | None = None,
    format: str = "gguf",  # noqa: A002
    type: str | None = None,  # noqa: A002
    max_size: int | None = None,
    bpw: float | None = None,
    max_kl: float | None = None,
    tensor_type: Sequence[tuple[str, str]] = (),
    effort: str = "default",
    calibration: str | None = None,
    imatrix: str | None = None,
    save_imatrix: str | None = None,
    device: str = "auto",
    block_size: int | None = None,
    symmetric: bool | None = None,
    accuracy_level: int | None = None,
) -> Plan | LazyPlan:
    """GGUF in so many bits, of a type, or within a budget; or ONNX MatMulNBits in 4 or 8 bits.

    `calibration` is the path of a text, "stdlib" (the default) or "none"; `imatrix` that of an
    imatrix to take instead, `save_imatrix` where the text's goes, `device` where the model is
    fitted to the text. The last three are for ONNX, see `to_onnx`. Raises UsageError for what does
    not go together, or a device that is not there.
    """
    from cgconvert.calibrate.gguf import Budget
    from cgconvert.calibrate.request import quantize_gguf, quantize_onnx, standard

    blocks = _given(block_size=block_size, symmetric=symmetric, accuracy_level=accuracy_level)
    asked = _given(bits=bits, type=type, max_size=max_size, bpw=bpw, max_kl=max_kl)
    if len(asked) != 1:
        options = ", ".join(f"--{name}" for name in ("bits", "type", "max-size", "bpw"))
        raise UsageError(f"say how small: one of {options} or --max-kl")
    if format == "onnx":
        given = _given(tensor_type=tensor_type or None, imatrix=imatrix, save_imatrix=save_imatrix)
        others = [name for name in (*asked, *given) if name != "bits"]
        if others:
            raise UsageError(f"{_option(others)} is an option of --format gguf; give --bits")
        return quantize_onnx(checkpoint, output, bits or 0, effort, calibration, blocks, device)
    if blocks:
        raise UsageError(f"{_option(blocks)} is an option of --format onnx; GGUF's types have none")
    budget = Budget(
        mix="Q8_0" if bits == 8 else type,
        like=standard(checkpoint.geometry) if bits == 4 else None,
        nbytes=max_size, bpw=bpw, kl=max_kl, fixed=tuple(tensor_type),
    )  # fmt: skip
    paths = {name: Path(path) for name, path in _given(imatrix=imatrix, save=save_imatrix).items()}
    return quantize_gguf(checkpoint, output, budget, effort, calibration, asked, device, **paths)


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given; the others have their format's default."""
    return {name: value for name, value in options.items() if value is not None}


def _option(given: Iterable[str]) -> str:
    return "--" + next(iter(given)).replace("_", "-")


CONVERSIONS: dict[str, Callable[..., Plan | LazyPlan]] = {
    "to-hf": to_hf,
    "to-onnx": to_onnx,
    "to-gguf": to_gguf,
    "quantize": quantize,
}
