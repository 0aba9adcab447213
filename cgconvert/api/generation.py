"""Continuing a prompt with an artefact: `generate` and `stream_generate`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cgconvert.api.caching import checked_cache
from cgconvert.api.declarations import GENERATE
from cgconvert.api.sources import Source, check_type, load
from cgconvert.errors import UsageError
from cgconvert.formats.registry import artefact_format, identify
from cgconvert.io.file_names import can_exist
from cgconvert.io.reading import within_budget
from cgconvert.model.decoder import Checkpoint
from cgconvert.options import accepted_values
from cgconvert.runtimes import RUNTIMES, open_runtime, prepare_runtime
from cgconvert.runtimes.generate import generate as generate_tokens
from cgconvert.runtimes.runtime import Runtime
from cgconvert.runtimes.source import SourceRuntime

__all__ = ["generate", "stream_generate"]

INCOMPLETE = "\ufffd"
"""What a decoded text ends in while a character's bytes are not all there."""


def generate(
    artefact: Source,
    prompt: str,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    runtime: str | None = None,
    device: str = "auto",
    cache: bool = True,
) -> str:
    """Continue a prompt with an artefact, in the runtime people use for its format, or a source.

    A source is computed in float32 by cgconvert itself; nothing is converted or written.

    Args:
        artefact: Path of a folder that `to_hf` or `to_onnx` wrote, or of a .gguf file; or any
            source, see `load`.
        prompt: Text to continue.
        max_new_tokens: Most tokens to generate, at least 1. Generation ends earlier at
            end-of-text, or where the context is full.
        temperature: 0 takes the most likely token each time; above, one is drawn from
            softmax(logits / temperature).
        seed: The same seed draws the same tokens.
        runtime: transformers, onnxruntime, onnxruntime-genai or llama.cpp; the format's first
            unless given.
        device: cpu, cuda, mps, gpu (the best there is), or auto: cuda where the runtime has it,
            else cpu.
        cache: See `load`.

    Returns:
        The prompt and its continuation.

    Raises:
        InputError: The artefact is missing or broken, or the prompt is empty or too long.
        UsageError: The runtime or device is not there (MissingRuntimeError: not installed).
        VerificationError: The artefact's logits are not finite.

    Example:
        >>> cgconvert.to_gguf("codegen-tiny-mono", "model.gguf").format
        'gguf'
        >>> cgconvert.generate("model.gguf", "def __init__(self, name):", max_new_tokens=6)
        'def __init__(self, name):\\n        self.name ='
    """
    pieces = stream_generate(
        artefact,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        runtime=runtime,
        device=device,
        cache=cache,
    )
    return "".join(pieces)


def stream_generate(
    artefact: Source,
    prompt: str,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    runtime: str | None = None,
    device: str = "auto",
    cache: bool = True,
) -> Iterator[str]:
    """Yield the prompt, then its continuation piece by piece while it is generated.

    Args:
        artefact: See `generate`.
        prompt: See `generate`.
        max_new_tokens: See `generate`.
        temperature: See `generate`.
        seed: See `generate`.
        runtime: See `generate`.
        device: See `generate`.
        cache: See `load`.

    Yields:
        The prompt, then text of one token or more: only complete characters. Joined, the pieces
        are what `generate` returns.

    Raises:
        InputError: See `generate`.
        UsageError: See `generate`.
        VerificationError: See `generate`.

    Example:
        >>> cgconvert.to_gguf("codegen-tiny-mono", "model.gguf").format
        'gguf'
        >>> list(cgconvert.stream_generate("model.gguf", "import os", max_new_tokens=2))
        ['import os', '\\n', 'import']
    """
    check_type("artefact", artefact, str, Path, Checkpoint)
    check_type("prompt", prompt, str)
    accepted = accepted_values(
        GENERATE,
        {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "seed": seed,
            "runtime": runtime,
            "device": device,
        },
    )
    with checked_cache(cache):
        opened = _open(artefact, accepted.get("runtime"), accepted["device"])
    try:
        ids = opened.tokenize(prompt)
        tokens = generate_tokens(
            opened,
            ids,
            accepted["max_new_tokens"],
            tokenizer_size=opened.tokenizer_size,
            eos_token_ids=opened.stopping_ids,
            temperature=accepted["temperature"],
            seed=accepted["seed"],
        )
        yielded = opened.detokenize(ids)
        yield yielded
        for token in tokens:
            ids.append(token)
            text = opened.detokenize(ids)
            if not text.endswith(INCOMPLETE):
                yield text[len(yielded) :]
                yielded = text
        if rest := opened.detokenize(ids)[len(yielded) :]:
            yield rest
        opened.check_unchanged()
    finally:
        opened.close()


@within_budget()
def _open(artefact: Source, runtime: str | None, device: str) -> Runtime:
    """Open an artefact in a runtime, or a source as it is.

    A folder for transformers that cgconvert did not write is a source, unless a runtime is named:
    so any layout of the family is read, and transformers need not be installed.
    """
    if isinstance(artefact, Checkpoint):
        return SourceRuntime(artefact, device)
    path = Path(artefact)
    if can_exist(path) and path.exists() and (artefact_kind := artefact_format(path)) is not None:
        if runtime in (None, *RUNTIMES.get(artefact_kind.name, ())):
            prepare_runtime(artefact_kind.name, runtime)
        identified = identify(path)
        is_source = identified.format == "huggingface" and identified.manifest is None
        if runtime is not None or not is_source:
            return open_runtime(identified.format, identified.path, device, name=runtime)
    checkpoint = load(artefact)
    if runtime is not None:
        raise UsageError(
            f"{artefact}: is a source, which cgconvert computes itself; leave out `runtime`, or "
            "convert it first"
        )
    return SourceRuntime(checkpoint, device)
