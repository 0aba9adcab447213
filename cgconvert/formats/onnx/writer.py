"""Plan a folder that optimum, onnxruntime-genai, transformers.js and plain onnxruntime read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.formats.base import OUT
from cgconvert.formats.huggingface.config import codegen_config, generation_config, token_ids
from cgconvert.formats.onnx.genai import (
    genai_config,
    genai_ids,
    genai_notes,
    search_settings,
)
from cgconvert.formats.onnx.graph import build
from cgconvert.formats.onnx.model_card import model_card
from cgconvert.formats.onnx.variant import Variant
from cgconvert.formats.onnx.weights import plan_tensors
from cgconvert.model.chat_templates import DEFAULT
from cgconvert.model.decoder import Checkpoint, Geometry
from cgconvert.write.plan import FilePlan, Plan

__all__ = ["Variant", "default_path", "plan"]

TOKENIZER_CONFIG = "tokenizer_config.json"


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
    graph_plans = (
        FilePlan(f"onnx/{data}", tensors=tensor_plans),
        FilePlan(f"onnx/{graph}", build(geometry, variant, tensor_plans, data, adjusted)),
    )
    card = model_card(checkpoint, variant, sum(file.size for file in graph_plans))
    return Plan(
        source=checkpoint,
        output=output,
        is_folder=True,
        format="onnx",
        type=variant.type,
        files=(
            *graph_plans,
            FilePlan("README.md", card.encode()),
            *(FilePlan(name, text) for name, text in _texts(checkpoint, variant).items()),
        ),
        options=variant.options,
        notes=genai_notes(
            checkpoint, search_settings(checkpoint.generation.sampling, geometry, target)
        ),
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
    geometry = checkpoint.geometry
    types = {"dtype": variant.dtype, "torch_dtype": variant.dtype}
    config = codegen_config(geometry, checkpoint.config)
    configs = {
        "config.json": config | token_ids(checkpoint) | types | _transformers_js(variant),
        "generation_config.json": generation_config(checkpoint),
        "genai_config.json": genai_config(
            geometry,
            genai_ids(checkpoint),
            search_settings(checkpoint.generation.sampling, geometry, variant.target),
            f"onnx/{variant.stem}.onnx",
            variant.target,
        ),
    }
    files = checkpoint.tokenizer.files(geometry.n_positions)
    files[TOKENIZER_CONFIG] = _with_one_template(files[TOKENIZER_CONFIG])
    return {name: _json(value) for name, value in configs.items()} | files


def _with_one_template(tokenizer_config: bytes) -> bytes:
    """Return a tokenizer_config.json without a list of chat templates: the default one or none.

    onnxruntime-genai loads no tokenizer with a list, and transformers.js reads no other file. The
    other templates are in files of their own.
    """
    config = json.loads(tokenizer_config)
    if not isinstance(config.get("chat_template"), list):
        return tokenizer_config
    templates = {entry["name"]: entry["template"] for entry in config.pop("chat_template")}
    if DEFAULT in templates:
        config["chat_template"] = templates[DEFAULT]
    return _json(config, ensure_ascii=False)


def _json(value: Any, ensure_ascii: bool = True) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=ensure_ascii) + "\n").encode()


def _transformers_js(variant: Variant) -> dict[str, Any]:
    """Create the entries from which transformers.js knows the graph if the user gives no dtype."""
    return {
        "transformers.js_config": {
            "dtype": variant.transformers_js,
            "kv_cache_dtype": variant.dtype,
            "use_external_data_format": True,
        }
    }
