"""Planning and converting by a conversion's name, and `to_hf`, `to_onnx`, `to_gguf`.

A conversion makes a plan from headers, then the plan is carried out. Functions of the API, commands
and steps of a recipe all go this way; so does every format that is registered.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from cgconvert.api.conversion_table import conversions
from cgconvert.api.declarations import CACHE, OUTPUT, READ, WRITE
from cgconvert.api.execution import ProgressOption, Result, execute, progress_for
from cgconvert.api.sources import Source, check_name, load, named
from cgconvert.errors import UsageError
from cgconvert.io.progress import shown_while_reading
from cgconvert.io.reading import within_budget
from cgconvert.options import accepted_values
from cgconvert.write.plan import LazyPlan

__all__ = ["convert", "plan", "to_gguf", "to_hf", "to_onnx"]


@within_budget()
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
    reading = {
        option.name: options.pop(option.name)
        for option in (*READ, *CACHE)
        if option.name in options
    }
    path = accepted_values((OUTPUT,), {"output": output}).get("output")
    own = accepted_values(known[conversion].options, options)
    name = own.pop("name", None)
    check_name(name)
    checkpoint = named(load(source, **reading), name)
    return known[conversion].plan(checkpoint, path, **own)


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
    writing = {option.name: options.pop(option.name) for option in WRITE if option.name in options}
    progress, cache = progress_for(options.pop("progress", None)), options.get("cache", True)
    with shown_while_reading(progress):
        planned = plan(source, conversion, output, **options)
    return execute(planned, cache=cache, progress=progress, **writing)


def to_hf(
    source: Source,
    output: str | Path | None = None,
    *,
    dtype: str = "float16",
    layout: str = "codegen",
    max_shard_size: int | str = "5GB",
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
    """Write a model as Hugging Face safetensors, with configuration, tokenizer and model card.

    Args:
        source: See `load`.
        output: Folder to write; `./out/<name>/hf` (`hf-gptj`, `hf-phi`) unless given.
        dtype: Type of the stored weights: float16, bfloat16 or float32.
        layout: codegen for CodeGenForCausalLM; gptj or phi for the same model as GPTJForCausalLM or
            PhiForCausalLM.
        max_shard_size: Most bytes of tensors in one file: a number, or text such as 5GB.
        name: The model's name in paths, metadata and card; the source's unless given.
        force: See `execute`.
        keep: See `execute`.
        allow_nonfinite: See `execute`.
        tokenizer: See `load`.
        config: See `load`.
        mp_num: See `load`.
        step: See `load`.
        revision: See `load`.
        adapter: See `load`.
        cache: See `load`.
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
    return convert(
        source,
        "to-hf",
        output,
        dtype=dtype,
        layout=layout,
        max_shard_size=max_shard_size,
        name=name,
        force=force,
        keep=keep,
        allow_nonfinite=allow_nonfinite,
        tokenizer=tokenizer,
        config=config,
        mp_num=mp_num,
        step=step,
        revision=revision,
        adapter=adapter,
        cache=cache,
        progress=progress,
    )


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
        name: The model's name in paths, metadata and card; the source's unless given.
        force: See `execute`.
        keep: See `execute`.
        allow_nonfinite: See `execute`.
        tokenizer: See `load`.
        config: See `load`.
        mp_num: See `load`.
        step: See `load`.
        revision: See `load`.
        adapter: See `load`.
        cache: See `load`.
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
    return convert(
        source,
        "to-onnx",
        output,
        dtype=dtype,
        bits=bits,
        block_size=block_size,
        symmetric=symmetric,
        accuracy_level=accuracy_level,
        client=client,
        target=target,
        name=name,
        force=force,
        keep=keep,
        allow_nonfinite=allow_nonfinite,
        tokenizer=tokenizer,
        config=config,
        mp_num=mp_num,
        step=step,
        revision=revision,
        adapter=adapter,
        cache=cache,
        progress=progress,
    )


def to_gguf(
    source: Source,
    output: str | Path | None = None,
    *,
    type: str = "F16",  # noqa: A002 - the option's name
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
    """Write a model as a GGUF file that an unmodified llama.cpp runs (architecture phi2).

    Quantized types are chosen by the weights alone; `quantize` fits them to a text.

    Args:
        source: See `load`.
        output: File to write, ending in .gguf; under `./out/<name>/gguf` unless given.
        type: Type of the matrices, such as F16, Q8_0 or Q4_K_M; norms and biases stay F32.
        name: The model's name in paths, metadata and card; the source's unless given.
        force: See `execute`.
        keep: See `execute`.
        allow_nonfinite: See `execute`.
        tokenizer: See `load`.
        config: See `load`.
        mp_num: See `load`.
        step: See `load`.
        revision: See `load`.
        adapter: See `load`.
        cache: See `load`.
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
    return convert(
        source,
        "to-gguf",
        output,
        type=type,
        name=name,
        force=force,
        keep=keep,
        allow_nonfinite=allow_nonfinite,
        tokenizer=tokenizer,
        config=config,
        mp_num=mp_num,
        step=step,
        revision=revision,
        adapter=adapter,
        cache=cache,
        progress=progress,
    )
