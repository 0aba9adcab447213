"""Writing artefacts: `to_hf`, `to_onnx`, `to_gguf`, `quantize`, and every registered format.

A conversion makes a plan from headers, then writes it. Commands and recipe steps go the same way.
Functions that are one conversion spell out its options as parameters, for signatures and types,
and hand all of them on to `convert`: on their only line, `locals()` holds the parameters alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgconvert.api.declarations import QUANTIZE, QUANTIZE_HELP, READ, WRITE
from cgconvert.api.progress import ProgressOption, progress_for
from cgconvert.api.results import Result
from cgconvert.api.sources import Source, load
from cgconvert.errors import UsageError
from cgconvert.formats.onnx.format import MATRIX_BLOCKS
from cgconvert.formats.registry import formats
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.options import Option, accepted_values
from cgconvert.write.execute import execute as write_plan
from cgconvert.write.plan import LazyPlan

__all__ = [
    "BUDGETS",
    "Conversion",
    "conversions",
    "convert",
    "execute",
    "plan",
    "quantize",
    "to_gguf",
    "to_hf",
    "to_onnx",
]

BLOCK_OPTIONS = tuple(option.name for option in MATRIX_BLOCKS)

BUDGETS = ("bits", "type", "max_size", "bpw", "max_kl")
"""Options of `quantize` that say how small; exactly one is given."""


@dataclass(frozen=True)
class Conversion:
    """A way to make an artefact: a command of the command line and a step of a recipe.

    Attributes:
        name: Such as to-gguf.
        options: Its own options, beside those of reading and writing.
        help: What `--help` says, with an example.
        plan: Makes the plan from a checkpoint, an output path or None, and the options by name.
        exactly_one_of: Names of options of which one has to be given.
    """

    name: str
    options: tuple[Option, ...]
    help: str
    plan: Callable[..., LazyPlan]
    exactly_one_of: tuple[str, ...] = ()


def conversions() -> dict[str, Conversion]:
    """All conversions by name: one for each format that is written, then quantize."""
    table = [
        Conversion(format_.command, format_.options, format_.help, format_.plan)
        for format_ in formats()
    ]
    table.sort(key=lambda conversion: conversion.name)
    table.append(Conversion("quantize", QUANTIZE, QUANTIZE_HELP, _plan_quantized, BUDGETS))
    return {conversion.name: conversion for conversion in table}


def plan(
    source: Source, conversion: str, output: str | Path | None = None, **options: Any
) -> LazyPlan:
    """Plan an artefact without writing anything.

    Args:
        source: See `load`.
        conversion: Name of the conversion: to-hf, to-onnx, to-gguf, quantize, or `to-` and the
            name of a registered format.
        output: Where the artefact would go; under ./out unless given.
        options: Options of that conversion (see `to_hf` and the others) and of `load`.

    Returns:
        The plan: `output`, `format`, `nbytes` on the disk at most, and `describe()`, which says
        what will be computed and written. `execute` carries it out.

    Raises:
        InputError: The source is missing, broken or does not fit the format.
        UsageError: An option does not exist, or options do not go together.

    Example:
        >>> plan = cgconvert.plan("codegen-tiny-mono", "to-gguf", type="Q8_0")
        >>> str(plan.output), plan.nbytes < 8_000_000
        ('out/codegen-tiny-mono/gguf/codegen-tiny-mono-Q8_0.gguf', True)
    """
    known = conversions()
    if conversion not in known:
        raise UsageError(f"no conversion {conversion!r}; there are {', '.join(known)}")
    reading = {option.name: options.pop(option.name) for option in READ if option.name in options}
    own = accepted_values(known[conversion].options, options)
    checkpoint = load(source, **reading)
    return known[conversion].plan(checkpoint, None if output is None else Path(output), **own)


def execute(
    plan: LazyPlan,
    *,
    force: bool = False,
    resume: bool = False,
    allow_nonfinite: bool = False,
    progress: ProgressOption = None,
) -> Result:
    """Carry out a plan. The artefact appears at its path complete, or not at all.

    Args:
        plan: What `plan` returned.
        force: Replace an existing output, once the new one is complete.
        resume: Continue what an interrupted run has written, and keep it if this one is too.
        allow_nonfinite: Keep NaN, infinities and what overflows to them; never in quantized types.
        progress: "auto" or True for a bar, an object with `step`, `advance` and `finish` (see
            `cgconvert.io.progress.Progress`), None for silence.

    Returns:
        The artefact's path and manifest.

    Raises:
        UsageError: The output exists and `force` is not given, or it is the input.
        InputError: Numbers of the source cannot be stored, or it is not what its manifest says.
        OutputError: Writing failed, or there is not enough space.

    Example:
        >>> plan = cgconvert.plan("codegen-tiny-mono", "to-gguf", "model.gguf", type="Q8_0")
        >>> cgconvert.execute(plan).bytes == plan.nbytes
        True
    """
    manifest = write_plan(
        plan,
        force=force,
        resume=resume,
        allow_nonfinite=allow_nonfinite,
        progress=progress_for(progress),
    )
    return Result(plan.output, manifest)


def convert(
    source: Source, conversion: str, output: str | Path | None = None, **options: Any
) -> Result:
    """Plan and write an artefact by the conversion's name, also of a format that you registered.

    Args:
        source: See `load`.
        conversion: See `plan`.
        output: Where the artefact goes; under ./out unless given.
        options: Options of that conversion, of `load` and of `execute`.

    Returns:
        The artefact's path and manifest.

    Raises:
        InputError: See `plan` and `execute`.
        UsageError: See `plan` and `execute`.
        OutputError: See `execute`.

    Example:
        >>> cgconvert.convert("codegen-tiny-mono", "to-hf", "folder", layout="phi").format
        'huggingface'
    """
    names = [*(option.name for option in WRITE), "progress"]
    writing = {name: options.pop(name) for name in names if name in options}
    return execute(plan(source, conversion, output, **options), **writing)


def to_hf(
    source: Source,
    output: str | Path | None = None,
    *,
    dtype: str = "float16",
    layout: str = "codegen",
    max_shard_size: int | str = "5GB",
    force: bool = False,
    resume: bool = False,
    allow_nonfinite: bool = False,
    tokenizer: str | Path | None = None,
    config: str | Path | None = None,
    mp_num: int | None = None,
    step: int | None = None,
    revision: str | None = None,
    progress: ProgressOption = None,
) -> Result:
    """Write a model as Hugging Face safetensors, with configuration, tokenizer and model card.

    Args:
        source: See `load`.
        output: Folder to write; `./out/<name>/hf` (or `hf-phi`) unless given.
        dtype: Type of the stored weights: float16, bfloat16 or float32.
        layout: codegen for CodeGenForCausalLM; phi for the same model as PhiForCausalLM.
        max_shard_size: Most bytes of tensors in one file: a number, or text such as 5GB.
        force: See `execute`.
        resume: See `execute`.
        allow_nonfinite: See `execute`.
        tokenizer: See `load`.
        config: See `load`.
        mp_num: See `load`.
        step: See `load`.
        revision: See `load`.
        progress: See `execute`.

    Returns:
        The artefact's path and manifest.

    Raises:
        InputError: The source is missing, broken or does not fit the layout.
        UsageError: An option does not exist, or the output does already.
        OutputError: Writing failed.

    Example:
        >>> result = cgconvert.to_hf("codegen-tiny-mono", "hf", max_shard_size="4MB")
        >>> result.type, sorted(path.name for path in result.path.glob("*.safetensors"))[0]
        ('float16', 'model-00001-of-00004.safetensors')
    """
    return convert(conversion="to-hf", **locals())


def to_onnx(
    source: Source,
    output: str | Path | None = None,
    *,
    dtype: str = "float32",
    bits: int | None = None,
    block_size: int | None = None,
    symmetric: bool | None = None,
    accuracy_level: int | None = None,
    client: str = "any",
    target: str = "cpu",
    force: bool = False,
    resume: bool = False,
    allow_nonfinite: bool = False,
    tokenizer: str | Path | None = None,
    config: str | Path | None = None,
    mp_num: int | None = None,
    step: int | None = None,
    revision: str | None = None,
    progress: ProgressOption = None,
) -> Result:
    """Write a model as an ONNX decoder with a KV cache: a complete repository.

    onnxruntime, onnxruntime-genai, optimum and transformers.js load the folder as it is.

    Args:
        source: See `load`.
        output: Folder to write; under `./out/<name>` unless given.
        dtype: Type of weights, activations and KV cache: float32 or float16.
        bits: 4 or 8 for quantized matrices (MatMulNBits), by the weights alone.
        block_size: Weights that share a scale: 16, 32, 64, 128 or 256; 32 unless given.
        symmetric: Whether 4-bit blocks have no zero points; 8-bit blocks never have.
        accuracy_level: What MatMulNBits may compute in: int8 (4, the default), float32 (1), or
            what suits the machine (0).
        client: transformers.js for a graph that computes only the last logits; optimum cannot
            load it. any for all other clients.
        target: cuda, with float16, for flash attention; batches are padded after the prompt then.
        force: See `execute`.
        resume: See `execute`.
        allow_nonfinite: See `execute`.
        tokenizer: See `load`.
        config: See `load`.
        mp_num: See `load`.
        step: See `load`.
        revision: See `load`.
        progress: See `execute`.

    Returns:
        The artefact's path and manifest.

    Raises:
        InputError: The source is missing or broken, or a matrix does not divide into blocks.
        UsageError: An option does not exist or go with another, or the output exists.
        OutputError: Writing failed.

    Example:
        >>> result = cgconvert.to_onnx("codegen-tiny-mono", "onnx", bits=4)
        >>> result.type, (result.path / "onnx" / "model_q4.onnx").is_file()
        ('int4', True)
    """
    return convert(conversion="to-onnx", **locals())


def to_gguf(
    source: Source,
    output: str | Path | None = None,
    *,
    type: str = "F16",  # noqa: A002 - the option's name
    force: bool = False,
    resume: bool = False,
    allow_nonfinite: bool = False,
    tokenizer: str | Path | None = None,
    config: str | Path | None = None,
    mp_num: int | None = None,
    step: int | None = None,
    revision: str | None = None,
    progress: ProgressOption = None,
) -> Result:
    """Write a model as a GGUF file that an unmodified llama.cpp runs (architecture phi2).

    Quantized types are chosen by the weights alone; `quantize` fits them to a text.

    Args:
        source: See `load`.
        output: File to write, ending in .gguf; under `./out/<name>/gguf` unless given.
        type: Type of the matrices, such as F16, Q8_0 or Q4_K_M; norms and biases stay F32.
        force: See `execute`.
        resume: See `execute`.
        allow_nonfinite: See `execute`.
        tokenizer: See `load`.
        config: See `load`.
        mp_num: See `load`.
        step: See `load`.
        revision: See `load`.
        progress: See `execute`.

    Returns:
        The artefact's path and manifest.

    Raises:
        InputError: The source is missing or broken, or rows do not divide into the type's blocks.
        UsageError: The type does not exist, or the output does already.
        OutputError: Writing failed.

    Example:
        >>> result = cgconvert.to_gguf("codegen-tiny-mono", "model.gguf", type="Q8_0")
        >>> result.type, result.bytes == result.path.stat().st_size
        ('Q8_0', True)
    """
    return convert(conversion="to-gguf", **locals())


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
    force: bool = False,
    resume: bool = False,
    allow_nonfinite: bool = False,
    tokenizer: str | Path | None = None,
    config: str | Path | None = None,
    mp_num: int | None = None,
    step: int | None = None,
    revision: str | None = None,
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
        device: Where the model is fitted to the text: cpu, cuda or auto.
        format: gguf or onnx.
        block_size: ONNX only, see `to_onnx`.
        symmetric: ONNX only, see `to_onnx`.
        accuracy_level: ONNX only, see `to_onnx`.
        force: See `execute`.
        resume: See `execute`; finished layers of the fit are kept too.
        allow_nonfinite: See `execute`; it holds for the vectors alone.
        tokenizer: See `load`.
        config: See `load`.
        mp_num: See `load`.
        step: See `load`.
        revision: See `load`.
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
    return convert(conversion="quantize", **locals())


def _plan_quantized(
    checkpoint: Checkpoint,
    output: Path | None,
    *,
    format: str = "gguf",  # noqa: A002
    effort: str = "default",
    calibration: str | None = None,
    device: str = "auto",
    imatrix: Path | None = None,
    save_imatrix: Path | None = None,
    tensor_type: Mapping[str, str] | None = None,
    **options: Any,
) -> LazyPlan:
    from cgconvert.calibrate.gguf import Budget
    from cgconvert.calibrate.request import default_4bit_type, quantize_gguf, quantize_onnx

    budget = {name: options[name] for name in BUDGETS if name in options}
    blocks = {name: options[name] for name in BLOCK_OPTIONS if name in options}
    if len(budget) != 1:
        *first, last = (f"`{name}`" for name in BUDGETS)
        raise UsageError(f"say how small: one of {', '.join(first)} or {last}")
    if format == "onnx":
        gguf_only = {
            "tensor_type": tensor_type, "imatrix": imatrix, "save_imatrix": save_imatrix,
        }  # fmt: skip
        refused = [name for name in budget if name != "bits"]
        refused += [name for name, value in gguf_only.items() if value]
        if refused:
            raise UsageError(f'`{refused[0]}` is an option of `format="gguf"`; give `bits`')
        return quantize_onnx(
            checkpoint, output, budget["bits"], effort, calibration, blocks, device
        )
    if blocks:
        raise UsageError(
            f'`{next(iter(blocks))}` is an option of `format="onnx"`; GGUF\'s types have none'
        )
    bits = budget.get("bits")
    fixed = tuple((pattern, type_.upper()) for pattern, type_ in (tensor_type or {}).items())
    return quantize_gguf(
        checkpoint,
        output,
        Budget(
            mix="Q8_0" if bits == 8 else budget.get("type"),
            like=default_4bit_type(checkpoint.geometry) if bits == 4 else None,
            nbytes=budget.get("max_size"),
            bpw=budget.get("bpw"),
            kl=budget.get("max_kl"),
            fixed=fixed,
        ),
        effort,
        calibration,
        budget,
        device,
        imatrix,
        save_imatrix,
    )
