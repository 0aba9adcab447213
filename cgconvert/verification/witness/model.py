"""Logits and greedy text as transformers gives them from the source's own files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cgconvert.io.system.memory import available_memory
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.dtype import DType
from cgconvert.verification.metrics import relative_error
from cgconvert.verification.prompts import PROMPTS
from cgconvert.verification.reference import Reference
from cgconvert.verification.witness.adapters import link_adapters
from cgconvert.verification.witness.opening import (
    NoWitnessError,
    SeparateTransformers,
    private_folder,
    separate_transformers,
)
from cgconvert.verification.witness.view import link_weights, write_config

__all__ = ["MAX_TOKENS", "Continuation", "LogitsReading", "ModelReading", "read_model"]

MEMORY_SHARE = 1 / 3
"""The share of the available memory that the witness's float32 weights may take."""

MAX_GENERATING = 500_000_000
"""Parameters up to which transformers generates: the time of a token grows with them."""

MAX_TOKENS = 32
"""Tokens that transformers generates after each opening."""

SLOW, SLOW_TOKENS = 100_000_000, 16
"""From this number of parameters on, only the first opening is continued, by so many tokens: 350M
takes 0.2 s for each."""

LOGIT_PROMPTS = (1, 3, 5, 7)
"""Indices in PROMPTS of the prompts on which logits are compared: short, with all kinds of text."""

MAX_PROMPT_TOKENS = 64


@dataclass(frozen=True)
class LogitsReading:
    """How far the reference of cgconvert is from transformers, on the source's own weights.

    Attributes:
        relative_error: max |difference| / max |logit|; None if a size was read differently.
        detail: What was compared, or which sizes differ.
    """

    relative_error: float | None
    detail: str


@dataclass(frozen=True)
class Continuation:
    """The greedy continuation of an opening, which is a prompt in ids, by transformers.

    Attributes:
        ids: The new ids; the last one may be a stop id.
        logits: The logits that each id was picked from, float32 [len(ids), tokenizer.size].
    """

    ids: tuple[int, ...]
    logits: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class ModelReading:
    """The source's model as transformers reads it; `continuations` is None if it was not asked."""

    logits: LogitsReading
    continuations: tuple[Continuation, ...] | None
    not_generated: str = ""


def read_model(
    source: Checkpoint,
    openings: Sequence[Sequence[int]],
    new_tokens: int,
    stop_ids: Sequence[int],
    weight_dtype: DType | None,
) -> ModelReading:
    """Load the source, or its first layers, compare logits, and generate."""
    if source.geometry.mp_num not in (0, 4) and "mp_num" in source.origin:
        raise NoWitnessError(
            f"transformers' CodeGen has 4 groups in qkv_proj; {source.geometry.mp_num} were given"
        )
    with private_folder() as view:
        write_config(source, view.folder)
        is_safetensors = link_weights(source, view)
        adapters = link_adapters(source, view)
        with separate_transformers(view.folder) as transformers:
            return _read(
                transformers,
                source,
                openings,
                new_tokens,
                stop_ids,
                weight_dtype,
                is_safetensors=is_safetensors,
                adapters=[link.name for link in adapters],
            )


def _read(
    transformers: SeparateTransformers,
    source: Checkpoint,
    openings: Sequence[Sequence[int]],
    new_tokens: int,
    stop_ids: Sequence[int],
    weight_dtype: DType | None,
    *,
    is_safetensors: bool,
    adapters: Sequence[str],
) -> ModelReading:
    """Read the model as `read_model` does, from the private folder that transformers has open."""
    g = source.geometry
    sizes = transformers.ask("sizes")
    if sizes["rows"] != g.vocab_size == _stored_rows(source):
        sizes["rows"] = g.vocab_size  # the vocabulary was resized
    if differing := _differing_sizes(sizes, source):
        return ModelReading(LogitsReading(None, differing), None, "its sizes differ")
    count = _affordable_layers(source)
    transformers.ask("load", g.vocab_size, count, is_safetensors, adapters)
    logits = _compare_logits(transformers, source, count)
    if count < g.n_layer:
        return ModelReading(logits, None, "only the first layers fit into memory")
    if g.parameters > MAX_GENERATING:
        return ModelReading(logits, None, "the model is large")
    if not stop_ids:
        return ModelReading(logits, None, "transformers read no id at which it stops")
    if weight_dtype is not None:
        transformers.ask("round_weights", weight_dtype.name)
    if g.parameters >= SLOW:
        openings, new_tokens = openings[:1], min(new_tokens, SLOW_TOKENS)
    continuations = []
    for opening in openings:
        ids, new_logits = transformers.ask(
            "generate",
            opening,
            new_tokens,
            stop_ids,
            source.tokenizer.size,
            tokens=len(opening) + new_tokens,
        )
        continuations.append(Continuation(tuple(ids), new_logits))
    return ModelReading(logits, tuple(continuations))


def _differing_sizes(sizes: Mapping[str, Any], source: Checkpoint) -> str:
    """Compare the sizes that transformers reads with cgconvert's; "" if they are the same.

    It also keeps transformers from making a model larger than the one that was checked.
    """
    g = source.geometry
    own = {
        "layers": g.n_layer,
        "heads": g.n_head,
        "width": g.n_embd,
        "inner width": g.n_inner,
        "rows": g.vocab_size,
    }
    differing = [
        f"{name}: transformers reads {sizes[name]}, cgconvert {size}"
        for name, size in own.items()
        if sizes[name] != size
    ]
    return "; ".join(differing)


def _stored_rows(source: Checkpoint) -> int | None:
    """The rows of the embedding in the source's file; None if it is not stored as one matrix."""
    shapes = [stored.shape for stored in source.decoder.wte.leaves()]
    return shapes[0][0] if len(shapes) == 1 and shapes[0] else None


def _affordable_layers(source: Checkpoint) -> int:
    """The number of layers whose float32 weights fit into MEMORY_SHARE of the available memory."""
    g = source.geometry
    ends = replace(g, n_layer=1).parameters
    layer = replace(g, n_layer=2).parameters - ends
    ends -= layer
    room = int(available_memory() * MEMORY_SHARE) // 4
    count = min(g.n_layer, (room - ends) // layer)
    if count < 1:
        raise NoWitnessError("not even its first layer fits into a third of the available memory")
    return int(count)


def _compare_logits(
    transformers: SeparateTransformers, source: Checkpoint, count: int
) -> LogitsReading:
    """Compare the logits of transformers' `count` layers with those of cgconvert's reference."""
    decoder = replace(
        source.decoder,
        geometry=replace(source.geometry, n_layer=count),
        layers=source.decoder.layers[:count],
    )
    limit = min(MAX_PROMPT_TOKENS, source.geometry.n_positions)
    sequences = [source.tokenizer.encode(PROMPTS[index])[:limit] for index in LOGIT_PROMPTS]
    reference = np.concatenate(Reference(decoder, weight_dtype=None).logits(sequences))
    total = sum(map(len, sequences))
    logits = np.concatenate(transformers.ask("logits", sequences, tokens=total))
    what = "the whole model" if count == source.geometry.n_layer else f"its first {count} layers"
    detail = f"{what} in float32, {len(logits)} tokens"
    if not np.isfinite(reference).all() and not np.isfinite(logits).all():
        raise NoWitnessError("its logits are not finite, in transformers too")
    return LogitsReading(relative_error(logits, reference), detail)
