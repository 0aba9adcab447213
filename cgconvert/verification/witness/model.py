"""Logits and greedy text as transformers gives them from the source's own files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cgconvert.io.system.memory import available_memory
from cgconvert.lazy import torch
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.dtype import DType
from cgconvert.verification.metrics import relative_error
from cgconvert.verification.prompts import PROMPTS
from cgconvert.verification.reference import Reference
from cgconvert.verification.witness.adapters import link_adapters, merge_adapters
from cgconvert.verification.witness.opening import NoWitnessError, private_folder, witnessing
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
    with private_folder() as folder:
        write_config(source, folder)
        is_safetensors = link_weights(source, folder)
        adapters = link_adapters(source, folder)
        with witnessing("model"):
            from transformers import AutoConfig

            config: Any = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        if config.vocab_size != source.geometry.vocab_size == _stored_rows(source):
            config.vocab_size = source.geometry.vocab_size  # the vocabulary was resized
        if differing := _differing_sizes(config, source):
            return ModelReading(LogitsReading(None, differing), None, "its sizes differ")
        count = _affordable_layers(source)
        config.num_hidden_layers = count
        model = _load(folder, config, is_safetensors=is_safetensors)
        model = merge_adapters(model, adapters)
        logits = _compare_logits(model, source, count)
        if count < source.geometry.n_layer:
            return ModelReading(logits, None, "only the first layers fit into memory")
        if source.geometry.parameters > MAX_GENERATING:
            return ModelReading(logits, None, "the model is large")
        if not stop_ids:
            return ModelReading(logits, None, "transformers read no id at which it stops")
        if weight_dtype is not None:
            for parameter in model.parameters():
                parameter.data = parameter.data.to(weight_dtype.torch_dtype).to(torch.float32)
        size = source.tokenizer.size
        if source.geometry.parameters >= SLOW:
            openings, new_tokens = openings[:1], min(new_tokens, SLOW_TOKENS)
        continuations = tuple(
            _continue(model, opening, new_tokens, stop_ids, size) for opening in openings
        )
    return ModelReading(logits, continuations)


def _differing_sizes(config: Any, source: Checkpoint) -> str:
    """Compare the sizes that transformers reads with cgconvert's; "" if they are the same.

    It also keeps transformers from making a model larger than the one that was checked.
    """
    g = source.geometry
    inner = getattr(config, "n_inner", getattr(config, "intermediate_size", None))
    sizes = {
        "layers": (config.num_hidden_layers, g.n_layer),
        "heads": (config.num_attention_heads, g.n_head),
        "width": (config.hidden_size, g.n_embd),
        "inner width": (4 * config.hidden_size if inner is None else inner, g.n_inner),
        "rows": (config.vocab_size, g.vocab_size),
    }
    differing = [
        f"{name}: transformers reads {theirs}, cgconvert {ours}"
        for name, (theirs, ours) in sizes.items()
        if theirs != ours
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


def _load(folder: Path, config: Any, *, is_safetensors: bool) -> Any:
    """Load the model in float32. Raises NoWitnessError if transformers finds no complete one."""
    with witnessing("model"):
        from transformers import AutoModelForCausalLM

        # Any: with output_loading_info it returns a pair, which its signature leaves out.
        factory: Any = AutoModelForCausalLM
        model, loading_info = factory.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=is_safetensors,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
    for kind in ("missing_keys", "mismatched_keys"):
        names = sorted(map(str, loading_info.get(kind) or ()))
        # A bias that is missing is zero in transformers too.
        names = [name for name in names if not name.endswith("lm_head.bias")]
        if names:
            raise NoWitnessError(f"transformers finds no {names[0]} in its files")
    return model.eval()


def _compare_logits(model: Any, source: Checkpoint, count: int) -> LogitsReading:
    """Compare the logits of a model of `count` layers with those of cgconvert's reference."""
    decoder = replace(
        source.decoder,
        geometry=replace(source.geometry, n_layer=count),
        layers=source.decoder.layers[:count],
    )
    limit = min(MAX_PROMPT_TOKENS, source.geometry.n_positions)
    sequences = [source.tokenizer.encode(PROMPTS[index])[:limit] for index in LOGIT_PROMPTS]
    reference = np.concatenate(Reference(decoder, weight_dtype=None).logits(sequences))
    parts = []
    with torch.inference_mode(), witnessing("model"):
        for sequence in sequences:
            parts.append(model(torch.tensor([sequence])).logits[0].float().numpy())
    logits = np.concatenate(parts)
    what = "the whole model" if count == source.geometry.n_layer else f"its first {count} layers"
    detail = f"{what} in float32, {len(logits)} tokens"
    if not np.isfinite(reference).all() and not np.isfinite(logits).all():
        raise NoWitnessError("its logits are not finite, in transformers too")
    return LogitsReading(relative_error(logits, reference), detail)


def _continue(
    model: Any, opening: Sequence[int], new_tokens: int, stop_ids: Sequence[int], size: int
) -> Continuation:
    """Continue an opening greedily by transformers' `generate`, without penalties, to a stop."""
    from transformers import GenerationConfig

    rows = int(model.config.vocab_size)
    settings = GenerationConfig(
        max_new_tokens=max(1, new_tokens),
        do_sample=False,
        num_beams=1,
        eos_token_id=list(stop_ids),
        pad_token_id=stop_ids[0],
        suppress_tokens=list(range(size, rows)) or None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    inputs = torch.tensor([list(opening)])
    with torch.inference_mode(), witnessing("model"):
        output = model.generate(
            inputs, attention_mask=torch.ones_like(inputs), generation_config=settings
        )
    ids = output.sequences[0, len(opening) :].tolist()
    logits = torch.cat(output.logits)[:, :size].float().numpy()
    return Continuation(tuple(ids), logits)
