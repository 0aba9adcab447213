"""Plan a folder that optimum, onnxruntime-genai, transformers.js and plain onnxruntime read.

genai_config.json, by which onnxruntime-genai runs the folder, has the keys of its documentation,
"Configuration reference" (src/config.h).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.formats.base import OUT
from cgconvert.formats.huggingface.config import codegen_config
from cgconvert.formats.onnx.graph import build
from cgconvert.formats.onnx.variant import Variant
from cgconvert.formats.onnx.weights import plan_tensors
from cgconvert.model.decoder import Checkpoint, Geometry
from cgconvert.write.plan import FilePlan, Plan

__all__ = ["Variant", "default_path", "genai_config", "plan"]


def default_path(
    checkpoint: Checkpoint,
    dtype: str = "float32",
    bits: int | None = None,
    client: str = "any",
    target: str = "cpu",
) -> Path:
    """Return the folder that a graph is written to if the user gives no output path."""
    folder = "onnx" + (f"-int{bits}" if bits else "") + ("-fp16" if dtype == "float16" else "")
    folder += ("" if client == "any" else "-js") + ("" if target == "cpu" else f"-{target}")
    return OUT / checkpoint.name / folder


def plan(
    checkpoint: Checkpoint,
    output: Path,
    *,
    dtype: str = "float32",
    bits: int | None = None,
    block_size: int = 32,
    symmetric: bool = False,
    accuracy_level: int = 4,
    client: str = "any",
    target: str = "cpu",
    adjusted: Sequence[str] = (),
) -> Plan:
    """Plan the complete repository: graph and data in onnx/, everything else at the root.

    Matrices that are already quantized for the same variant keep their bytes. `adjusted` are
    the names of vectors that calibration has changed; the graph records them.

    Raises InputError if ONNX Runtime's attention does not support the geometry or a matrix does not
    divide into blocks, UsageError for options that do not exist or cannot be combined.
    """
    geometry = checkpoint.geometry
    _check(geometry)
    variant = Variant(dtype, bits, block_size, symmetric, accuracy_level, client, target)
    graph, data = f"{variant.stem}.onnx", f"{variant.stem}.onnx_data"
    tensor_plans = plan_tensors(checkpoint.decoder, variant)
    return Plan(
        source=checkpoint,
        output=output,
        is_folder=True,
        format="onnx",
        type=variant.type,
        files=(
            FilePlan(f"onnx/{data}", tensors=tensor_plans),
            FilePlan(f"onnx/{graph}", build(geometry, variant, tensor_plans, data, adjusted)),
            *(FilePlan(name, text) for name, text in _texts(checkpoint, variant).items()),
        ),
        options=variant.options,
    )


def _check(geometry: Geometry) -> None:
    """Check the limits of GroupQueryAttention (group_query_attention_helper.h, CheckInputs)."""
    for name, value in (("head size", geometry.head_dim), ("rotary_dim", geometry.rotary_dim)):
        if value % 16:
            raise InputError(
                f"config: {name} {value} is not a multiple of 16, which ONNX Runtime's "
                "GroupQueryAttention needs; convert this model to another format"
            )


def _texts(checkpoint: Checkpoint, variant: Variant) -> dict[str, bytes]:
    """Create the files at the root: configurations and tokenizer."""
    geometry, end = checkpoint.geometry, checkpoint.tokenizer.eos_token_id
    ids = {"bos_token_id": end, "eos_token_id": end}
    types = {"dtype": variant.dtype, "torch_dtype": variant.dtype}
    config = codegen_config(geometry, checkpoint.config)
    configs = {
        "config.json": config | ids | types | _transformers_js(variant),
        "generation_config.json": ids | {"pad_token_id": end},
        "genai_config.json": genai_config(
            geometry, end, f"onnx/{variant.stem}.onnx", variant.target
        ),
    }
    texts = {name: (json.dumps(value, indent=2) + "\n").encode() for name, value in configs.items()}
    return texts | checkpoint.tokenizer.files(geometry.n_positions)


def _transformers_js(variant: Variant) -> dict[str, Any]:
    """Create the entries from which transformers.js knows the graph if the user gives no dtype."""
    return {
        "transformers.js_config": {
            "dtype": variant.transformers_js,
            "kv_cache_dtype": variant.dtype,
            "use_external_data_format": True,
        }
    }


def genai_config(
    geometry: Geometry, end_of_text: int, graph: str, target: str = "cpu"
) -> dict[str, Any]:
    """Create the configuration for the graph at `graph`, a path relative to the folder.

    `end_of_text` is the id of that token. Past and present keys and values share one buffer of
    `context_length` positions, so that a step copies nothing.
    """
    g = geometry
    providers: list[dict[str, Any]] = [{"cuda": {}}] if target == "cuda" else []
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": providers},
        "filename": graph,
        "head_size": g.head_dim,
        "hidden_size": g.n_embd,
        "num_attention_heads": g.n_head,
        "num_hidden_layers": g.n_layer,
        "num_key_value_heads": g.n_head,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    return {
        "model": {
            "type": "decoder",
            "bos_token_id": end_of_text,
            "eos_token_id": end_of_text,
            "pad_token_id": end_of_text,
            "context_length": g.n_positions,
            "vocab_size": g.vocab_size,
            "decoder": decoder,
        },
        "search": {
            "do_sample": False,
            "max_length": g.n_positions,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }
