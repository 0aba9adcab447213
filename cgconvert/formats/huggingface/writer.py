"""Plan a Hugging Face folder: safetensors, configuration, tokenizer and model card."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cgconvert.codecs.encoding import BF16, F16, F32, Encoding
from cgconvert.errors import InputError, UsageError
from cgconvert.formats.huggingface.config import generation_config, token_ids
from cgconvert.formats.huggingface.layouts import LAYOUTS, ROTARY_BASE, Layout
from cgconvert.formats.huggingface.model_card import model_card
from cgconvert.model.decoder import Checkpoint, Geometry
from cgconvert.model.tensor import LazyTensor
from cgconvert.model.tensor_names import named_tensors
from cgconvert.options import shown
from cgconvert.write.plan import FilePlan, Plan, TensorPlan, lay_out

__all__ = ["DTYPES", "plan"]

DTYPES: Mapping[str, Encoding] = {"float16": F16, "bfloat16": BF16, "float32": F32}

Named = tuple[str, LazyTensor]
"""A tensor with its name in the file."""


def plan(
    checkpoint: Checkpoint, output: Path, *, dtype: str, layout: str, max_shard_size: int
) -> Plan:
    """Plan a folder at `output`, with every weight stored as `dtype`.

    A shard has at most `max_shard_size` bytes of tensors; a larger tensor gets a shard of its own.
    The files depend only on the weights, the tokenizer and the name, not on the source's format.
    Raises InputError if the model does not fit the layout, UsageError for unknown options.
    """
    if dtype not in DTYPES:
        raise UsageError(f"`dtype={shown(dtype)}`: give one of {', '.join(DTYPES)}")
    if layout not in LAYOUTS:
        raise UsageError(f"`layout={shown(layout)}`: give one of {', '.join(LAYOUTS)}")
    if max_shard_size < 1:
        raise UsageError(f"`max_shard_size={max_shard_size}`: give at least one byte")
    g, tokenizer = checkpoint.geometry, checkpoint.tokenizer
    _check_fits(LAYOUTS[layout], g, checkpoint.name)
    names, groups = LAYOUTS[layout].names, LAYOUTS[layout].groups
    named = named_tensors(checkpoint.decoder, names, mp_num=groups)
    config = LAYOUTS[layout].config(g, checkpoint.config)
    tensors = [(entry.name, entry.tensor) for entry in named]
    # transformers 5 reads dtype, older versions torch_dtype.
    config |= token_ids(checkpoint) | {"dtype": dtype, "torch_dtype": dtype}
    card = model_card(
        checkpoint.name,
        g,
        tokenizer,
        dtype=dtype,
        layout=layout,
        known_as=checkpoint.known_as,
    )
    texts = {
        "config.json": _json(config),
        "generation_config.json": _json(generation_config(checkpoint)),
        "README.md": card.encode(),
        **tokenizer.files(g.n_positions),
    }
    return Plan(
        source=checkpoint,
        output=output,
        is_folder=True,
        format="huggingface",
        type=dtype,
        files=(
            *_safetensors(tensors, DTYPES[dtype], max_shard_size),
            *(FilePlan(name, content) for name, content in texts.items()),
        ),
        options={"dtype": dtype, "layout": layout, "max_shard_size": max_shard_size},
    )


def _check_fits(layout: Layout, g: Geometry, name: str) -> None:
    """Raise InputError if a model differs from the constants in the layout's class."""
    if layout.groups and g.n_head % layout.groups:
        raise InputError(
            f"{name}: {g.n_head} heads do not divide into the {layout.groups} groups that "
            'transformers has for CodeGen; use `layout="phi"` or `layout="gptj"`'
        )
    if not layout.has_rotary_base and g.rotary_base != ROTARY_BASE:
        raise InputError(
            f"{name}: the rotary base is {g.rotary_base:g} and transformers has "
            f'{ROTARY_BASE:g} for CodeGen and GPT-J; use `layout="phi"`'
        )


def _safetensors(
    tensors: Iterable[Named], encoding: Encoding, max_shard_size: int
) -> Iterator[FilePlan]:
    """Yield model.safetensors, or shards and their index; transformers expects these names."""
    shards = list(_shards(tensors, encoding, max_shard_size))
    if len(shards) == 1:
        yield _safetensors_file("model.safetensors", shards[0], encoding)
        return
    names = [
        f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)
    ]
    files = [
        _safetensors_file(name, shard, encoding) for name, shard in zip(names, shards, strict=True)
    ]
    yield from files
    total = sum(tensor_plan.nbytes for file in files for tensor_plan in file.tensors)
    weight_map = {tensor_plan.name: file.path for file in files for tensor_plan in file.tensors}
    yield FilePlan(
        "model.safetensors.index.json",
        _json({"metadata": {"total_size": total}, "weight_map": weight_map}),
    )


def _shards(
    tensors: Iterable[Named], encoding: Encoding, max_shard_size: int
) -> Iterator[list[Named]]:
    """Group tensors, in their order, into shards of at most `max_shard_size` bytes."""
    shard: list[Named] = []
    filled = 0
    for name, tensor in tensors:
        size = sum(tensor_plan.nbytes for tensor_plan in _tensor_plans([(name, tensor)], encoding))
        if shard and filled + size > max_shard_size:
            yield shard
            shard, filled = [], 0
        shard.append((name, tensor))
        filled += size
    yield shard


def _safetensors_file(path: str, tensors: Sequence[Named], encoding: Encoding) -> FilePlan:
    """Plan a safetensors file: the header's length (8 bytes, little-endian), header and tensors.

    Format: README of huggingface/safetensors. The tensors follow without gaps, and offsets count
    from the end of the header. Spaces pad the header, so that the tensors begin at a multiple of 8.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for tensor_plan in _tensor_plans(tensors, encoding):
        for array_plan in tensor_plan.arrays:
            entries[array_plan.name] = {
                "dtype": array_plan.dtype,
                "shape": list(array_plan.shape),
                "data_offsets": [array_plan.offset, array_plan.offset + array_plan.nbytes],
            }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return FilePlan(path, header, _tensor_plans(tensors, encoding, start=len(header)))


def _tensor_plans(
    tensors: Iterable[Named], encoding: Encoding, start: int = 0
) -> tuple[TensorPlan, ...]:
    """Lay tensors out one after another, the first at byte `start`."""
    return lay_out(((name, tensor, encoding) for name, tensor in tensors), start=start)


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
