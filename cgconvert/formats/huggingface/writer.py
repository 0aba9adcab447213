"""Plan a Hugging Face folder: safetensors, configuration, tokenizer and model card.

There are two layouts: `codegen` is the original's, `phi` has the same numbers for PhiForCausalLM.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cgconvert.codecs.encoding import BF16, F16, F32, Encoding
from cgconvert.errors import InputError, UsageError
from cgconvert.formats.huggingface.config import (
    codegen_config,
    generation_config,
    phi_config,
    token_ids,
)
from cgconvert.model import family
from cgconvert.model.decoder import Checkpoint, Geometry
from cgconvert.model.tensor import LazyTensor
from cgconvert.model.tensor_names import CODEGEN, PHI, named_tensors
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.options import shown
from cgconvert.write.plan import FilePlan, Plan, TensorPlan, lay_out

__all__ = ["DTYPES", "LAYOUTS", "model_card", "plan"]

DTYPES: Mapping[str, Encoding] = {"float16": F16, "bfloat16": BF16, "float32": F32}
LAYOUTS = ("codegen", "phi")

GROUPS = 4
"""The mp_num that transformers hard-codes (modeling_codegen.py: CodeGenAttention.forward)."""

ROTARY_BASE = 10000.0
"""The rotary base that transformers hard-codes (create_sinusoidal_positions)."""

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
    if layout == "codegen":
        _check_codegen(g, checkpoint.name)
        named = named_tensors(checkpoint.decoder, CODEGEN, mp_num=GROUPS)
        config = codegen_config(g, checkpoint.config)
    else:
        named = named_tensors(checkpoint.decoder, PHI)
        config = phi_config(g, checkpoint.config)
    tensors = [(entry.name, entry.tensor) for entry in named]
    # transformers 5 reads dtype, older versions torch_dtype.
    config |= token_ids(checkpoint) | {"dtype": dtype, "torch_dtype": dtype}
    card = model_card(checkpoint.name, g, tokenizer, dtype=dtype, layout=layout)
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


def _check_codegen(g: Geometry, name: str) -> None:
    """Raise InputError if a model differs from the constants in transformers' CodeGen."""
    if g.n_head % GROUPS:
        raise InputError(
            f"{name}: {g.n_head} heads do not divide into the {GROUPS} groups that transformers "
            'has for CodeGen; use `layout="phi"`'
        )
    if g.rotary_base != ROTARY_BASE:
        raise InputError(
            f"{name}: the rotary base is {g.rotary_base:g} and transformers has "
            f'{ROTARY_BASE:g} for CodeGen; use `layout="phi"`'
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


_SNIPPET = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path)

text = "def hello_world():"
input_ids = tokenizer(text, return_tensors="pt").input_ids

generated_ids = model.generate(input_ids, max_length=128)
print(tokenizer.decode(generated_ids[0], skip_special_tokens=True))
```
"""

_MLX = """\
With MLX: `mlx_lm.generate --model . --prompt 'def hello_world():'`
"""

_LAYOUTS = {
    "codegen": (
        "The weights are CodeGen's own, for `CodeGenForCausalLM`: `qkv_proj` is packed in 4 groups "
        "of q, v, k, and rotary pairs are interleaved."
    ),
    "phi": (
        "The weights are laid out for `PhiForCausalLM`, whose mathematics is CodeGen's: q, k and v "
        "are split, each head's rotary rows are in half-split order, and the biases that Phi has "
        "and CodeGen has not are zero. The logits are those of the original; engines that serve "
        "Phi can serve it."
    ),
}


def model_card(
    name: str, geometry: Geometry, tokenizer: Tokenizer, *, dtype: str, layout: str
) -> str:
    """Create the model card: Markdown after YAML front matter, the Hub's metadata."""
    member = family.is_published_checkpoint(name)
    front = {
        "license": "bsd-3-clause",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["code", "codegen"],
    } | ({"base_model": family.hub_id(name)} if member else {})
    made_from = f"[{family.hub_id(name)}](https://huggingface.co/{family.hub_id(name)})"
    source = made_from if member else f"the CodeGen checkpoint `{name}`"
    rows = {
        "parameters": f"{geometry.parameters:,}",
        "type of the weights": dtype,
        "layers": geometry.n_layer,
        "width": geometry.n_embd,
        "inner width of the MLP": geometry.n_inner,
        "attention heads": f"{geometry.n_head} of {geometry.head_dim}",
        "rotary dimensions of a head": geometry.rotary_dim,
        "context (tokens)": geometry.n_positions,
        "rows of the embedding": geometry.vocab_size,
        "tokens of the tokenizer": tokenizer.size,
        "end of text": f"`{tokenizer.eos_token}`, id {tokenizer.eos_token_id}",
    }
    table = "".join(f"| {key} | {value} |\n" for key, value in rows.items())
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
            f"# {name}\n",
            f"Converted by cgconvert from {source}, a program synthesis model of the CodeGen "
            "family ([paper](https://arxiv.org/abs/2203.13474)). Nothing was trained or "
            f"fine-tuned. {_LAYOUTS[layout]}\n",
            f"## Use\n\n{_SNIPPET}" + (f"\n{_MLX}" if layout == "phi" else ""),
            f"## Geometry\n\n| | |\n|---|---|\n{table}",
            "Rows of the embedding beyond the tokenizer's have no token: a sampler should not "
            "pick them.\n",
        ]
    )
