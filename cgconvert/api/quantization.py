"""Quantizing a model: `quantize`, and the plan that its options ask for.

Of the many options each format takes only some, and exactly one says how small the artefact is
to be. That is checked here; how a model is quantized is decided in `cgconvert.calibrate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cgconvert.api.declarations import BUDGETS, NAME, OUTPUT, QUANTIZE
from cgconvert.api.execution import ProgressOption, Result, execute, progress_for
from cgconvert.api.sources import Source, check_name, load, named
from cgconvert.errors import UsageError
from cgconvert.formats.onnx.format import MATRIX_BLOCKS
from cgconvert.model.decoder import Checkpoint
from cgconvert.options import accepted_values
from cgconvert.write.plan import LazyPlan

__all__ = ["plan_quantized", "quantize"]

ONNX_OPTIONS = tuple(option.name for option in MATRIX_BLOCKS)
"""Options that only ONNX takes: those of its quantization blocks."""

GGUF_OPTIONS = ("tensor_type", "imatrix", "save_imatrix")
"""Options that only GGUF takes, beside every budget but `bits`."""


def quantize(
    source: Source,
    output: str | Path | None = None,
    *,
    bits: int | None = None,
    type: str | None = None,  # noqa: A002 - the option's name
    max_size: int | str | None = None,
    bpw: float | None = None,
    max_kl: float | None = None,
    tensor_type: Mapping[str, str] | None = None,
    effort: str = "default",
    calibration: str | None = None,
    imatrix: str | Path | None = None,
    save_imatrix: str | Path | None = None,
    device: str = "auto",
    format: str = "gguf",  # noqa: A002 - the option's name
    block_size: int | None = None,
    symmetric: bool | None = None,
    accuracy_level: int | None = None,
    name: str | None = None,
    force: bool = False,
    keep: bool = True,
    allow_nonfinite: bool = False,
    tokenizer: str | Path | None = None,
    config: str | Path | None = None,
    mp_num: int | Literal["auto"] | None = None,
    step: int | None = None,
    revision: str | None = None,
    adapter: str | Path | Sequence[str | Path] = (),
    cache: bool = True,
    progress: ProgressOption = None,
) -> Result:
    """Write a model in fewer bits, fitted to a text: GGUF, or ONNX with MatMulNBits.

    Exactly one of `bits`, `type`, `max_size`, `bpw` and `max_kl` says how small.

    Args:
        source: See `load`.
        output: Where to write; under `./out/<name>` unless given.
        bits: Bits a weight, 4 or 8. For GGUF, 4 means at most the bytes of Q4_K_M, with types
            chosen for each matrix.
        type: A GGUF type or standard mix of types, such as Q4_0 or Q4_K_M.
        max_size: The largest file: bytes, or text such as 4.2GB.
        bpw: Bits a weight, all bytes of the file counted: 1 to 16.
        max_kl: The largest loss, as KL divergence in nats a token; the smallest file within it is
            written.
        tensor_type: Types by pattern of a GGUF matrix's name, the first match first:
            `{"blk.*.attn_v.weight": "Q6_K"}`.
        effort: fast for the weights alone, default for a text, max for more text and longer.
        calibration: File with the text; "stdlib", the default, is a part of Python's standard
            library; "none" takes no text.
        imatrix: llama.cpp's imatrix file, in place of a text.
        save_imatrix: File to write the text's imatrix to, for llama.cpp.
        device: Where the model is fitted to the text: auto (cuda or cpu), cpu, cuda, mps or gpu.
        format: gguf or onnx.
        block_size: ONNX only, see `to_onnx`.
        symmetric: ONNX only, see `to_onnx`.
        accuracy_level: ONNX only, see `to_onnx`.
        name: The model's name in paths, metadata and card; the source's unless given.
        force: See `execute`.
        keep: See `execute`; finished layers of the fit are kept too.
        allow_nonfinite: See `execute`; it holds for the vectors alone.
        tokenizer: See `load`.
        config: See `load`.
        mp_num: See `load`.
        step: See `load`.
        revision: See `load`.
        adapter: See `load`.
        cache: See `load`.
        progress: See `execute`.

    Returns:
        The artefact's path and manifest; `types` has the type chosen for each matrix.

    Raises:
        InputError: The source, text or imatrix is missing or broken.
        UsageError: Options do not go together, nothing is that small, or the output exists.
        OutputError: Writing failed.

    Example:
        >>> result = cgconvert.quantize("codegen-tiny-mono", max_size="4MB", effort="fast")
        >>> result.type, result.bytes <= 4_000_000
        ('Q3_K', True)
    """
    values = accepted_values(
        (OUTPUT, NAME, *QUANTIZE),
        {
            "output": output,
            "name": name,
            "bits": bits,
            "type": type,
            "max_size": max_size,
            "bpw": bpw,
            "max_kl": max_kl,
            "tensor_type": tensor_type,
            "effort": effort,
            "calibration": calibration,
            "imatrix": imatrix,
            "save_imatrix": save_imatrix,
            "device": device,
            "format": format,
            "block_size": block_size,
            "symmetric": symmetric,
            "accuracy_level": accuracy_level,
        },
    )
    path, name = values.pop("output", None), values.pop("name", None)
    check_name(name)
    shown = progress_for(progress)
    checkpoint = load(
        source,
        tokenizer=tokenizer,
        config=config,
        mp_num=mp_num,
        step=step,
        revision=revision,
        adapter=adapter,
        cache=cache,
        progress=shown,
    )
    checkpoint = named(checkpoint, name)
    plan = plan_quantized(checkpoint, path, **values)
    return execute(
        plan,
        force=force,
        keep=keep,
        allow_nonfinite=allow_nonfinite,
        cache=cache,
        progress=shown,
    )


def plan_quantized(checkpoint: Checkpoint, output: Path | None, **options: Any) -> LazyPlan:
    """Plan a quantized artefact, or one that is fitted to a text.

    Args:
        checkpoint: The model.
        output: Where to write; under ./out where it is None.
        options: The given options of `quantize` in the types that the code works with; those of
            reading and writing apart.

    Raises:
        InputError: The text or the imatrix is missing or broken.
        UsageError: Options do not go together, or nothing is that small.
    """
    budgets = [f"`{name}`" for name in BUDGETS if name in options]
    if len(budgets) > 1:
        raise UsageError(f"{', '.join(budgets[:-1])} and {budgets[-1]}: give one")
    if not budgets:
        *first, last = (f"`{name}`" for name in BUDGETS)
        raise UsageError(f"say how small: one of {', '.join(first)} or {last}, as in `bits=4`")
    plan_format = _PLAN_FUNCTIONS[options.pop("format", "gguf")]
    return plan_format(checkpoint, output, **options)


def _plan_onnx(
    checkpoint: Checkpoint,
    output: Path | None,
    *,
    effort: str = "default",
    calibration: str | None = None,
    device: str = "auto",
    **options: Any,
) -> LazyPlan:
    # Not imported at the top: it brings onnx, which conversions without calibration do without.
    from cgconvert.calibrate.request import quantize_onnx

    refused = [name for name in BUDGETS if name in options and name != "bits"]
    refused += [name for name in GGUF_OPTIONS if options.get(name)]
    if refused:
        raise UsageError(f'`{refused[0]}` is an option of `format="gguf"`; give `bits`')
    block_options = {name: options[name] for name in ONNX_OPTIONS if name in options}
    return quantize_onnx(
        checkpoint, output, options["bits"], effort, calibration, block_options, device
    )


def _plan_gguf(
    checkpoint: Checkpoint,
    output: Path | None,
    *,
    effort: str = "default",
    calibration: str | None = None,
    device: str = "auto",
    imatrix: Path | None = None,
    save_imatrix: Path | None = None,
    tensor_type: Mapping[str, str] | None = None,
    **options: Any,
) -> LazyPlan:
    # Not imported at the top: it brings onnx, which conversions without calibration do without.
    from cgconvert.calibrate.budget import Budget
    from cgconvert.calibrate.request import default_4bit_type, quantize_gguf

    for name in ONNX_OPTIONS:
        if name in options:
            raise UsageError(f'`{name}` is an option of `format="onnx"`; GGUF\'s types have none')
    bits = options.get("bits")
    budget = Budget(
        mix="Q8_0" if bits == 8 else options.get("type"),
        like=default_4bit_type(checkpoint.geometry) if bits == 4 else None,
        nbytes=options.get("max_size"),
        bpw=options.get("bpw"),
        kl=options.get("max_kl"),
        fixed=tuple((pattern, type_.upper()) for pattern, type_ in (tensor_type or {}).items()),
    )
    requested = {name: options[name] for name in BUDGETS if name in options}
    return quantize_gguf(
        checkpoint, output, budget, effort, calibration, requested, device, imatrix, save_imatrix
    )


_PLAN_FUNCTIONS: dict[str, Callable[..., LazyPlan]] = {"gguf": _plan_gguf, "onnx": _plan_onnx}
"""What plans a quantized artefact, by format.

Formats do not say it themselves: they lie below calibration and know nothing of it.
"""
