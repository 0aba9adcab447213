"""What an artefact has to be before a runtime gets it.

Runtimes believe files: llama.cpp aborts the process on a key of the wrong type, onnxruntime follows
paths, onnxruntime-genai loads libraries that a configuration names, transformers code. So all that
reaches one is of the kind that cgconvert writes. Whether the numbers are right is not judged here:
that is for `verify`, which runs wrong models to say how wrong they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx as onnx_package
import torch
from onnx import AttributeProto, ModelProto, TensorProto

from cgconvert.errors import InputError
from cgconvert.formats.gguf import reader as gguf
from cgconvert.formats.gguf.header import GgufHeader, read_header
from cgconvert.formats.gguf.writer import ADJUSTED, ARCHITECTURE, SUPPRESSED
from cgconvert.formats.huggingface import config_reader as configs
from cgconvert.formats.huggingface import weight_files as weights
from cgconvert.formats.onnx import reader as onnx
from cgconvert.formats.onnx.builder import MICROSOFT, OPERATORS
from cgconvert.formats.onnx.genai import genai_config
from cgconvert.io.strict_json import read_json
from cgconvert.model.decoder import Geometry
from cgconvert.model.tensor import Zeros
from cgconvert.model.tensor_names import CODEGEN, GGUF, PHI
from cgconvert.model.tokenizer import Tokenizer

__all__ = ["admit_genai", "admit_gguf", "admit_huggingface", "admit_onnx"]

RUNS_CODE = (
    "auto_map", "quantization_config", "attn_implementation", "_attn_implementation",
    "_attn_implementation_internal", "experts_implementation", "_experts_implementation",
    "custom_pipelines", "adapter_config", "base_model_name_or_path",
)  # fmt: skip
"""Entries of a configuration by which transformers loads modules or fetches kernels."""

GGUF_KEYS = frozenset(
    (
        *(f"{ARCHITECTURE}.{key}" for key in (
            "context_length", "embedding_length", "feed_forward_length", "block_count",
            "attention.head_count", "attention.head_count_kv", "attention.layer_norm_epsilon",
            "rope.dimension_count", "rope.freq_base",
        )),
        *(f"tokenizer.ggml.{key}" for key in (
            "model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id",
            "eot_token_id", "unknown_token_id", "padding_token_id", "add_bos_token",
            "add_space_prefix",
        )),
        SUPPRESSED, ADJUSTED,
    )
)  # fmt: skip
"""Beside SHOWN, which llama.cpp only shows; it obeys others, or aborts on them."""

SHOWN = ("general.", "quantize.")
"""The second is where llama-quantize says which imatrix it was given."""

NO_WEIGHTS = ("I8", "I16", "I32", "I64", "F64")
"""Types that ggml knows, and has no multiplication for."""

SMALL = 64
"""Elements of a tensor kept in a graph itself."""

_NUMBERS = (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.FLOATS)


def admit_huggingface(folder: Path) -> None:
    """A folder for transformers: safetensors of just the shapes its config.json says, no code.

    Raises InputError.
    """
    where = folder / "config.json"
    config = read_json(where)
    kind = config.get("model_type")
    if kind not in ("codegen", "phi"):
        raise InputError(f"{where}: model_type is {kind!r}, not codegen or phi")
    tokenizer = folder / "tokenizer_config.json"
    for path in (where, tokenizer, folder / "generation_config.json"):
        said = read_json(path) if path.is_file() else {}
        code = [key for key in RUNS_CODE if said.get(key)]
        if code:
            raise InputError(f"{path}: refused: {code[0]} would run code that it names")
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{folder}: refused: it has an adapter_config.json")
    layout, files = weights.find(folder)
    if layout != "safetensors":
        raise InputError(f"{folder}: has no safetensors")

    def integer(*keys: str, default: int | None = None) -> int:
        return configs.integer(config, where, *keys, default=default)

    width = integer("n_embd", "hidden_size")
    geometry = configs.geometry(
        where,
        n_layer=integer("n_layer", "num_hidden_layers"),
        n_embd=width,
        n_head=integer("n_head", "num_attention_heads"),
        rotary_dim=2,
        n_positions=integer("n_positions", "n_ctx", "max_position_embeddings"),
        vocab_size=integer("vocab_size"),
        n_inner=integer("n_inner", "intermediate_size", default=4 * width),
        mp_num=1,
    )
    names = CODEGEN if kind == "codegen" else PHI
    shapes = {name: Zeros(t.shape, t.dtype) for name, t in weights.read(files).items()}
    names.decoder(geometry, shapes, str(folder))
    Tokenizer.load(folder)


def admit_gguf(path: Path) -> None:
    """A file for llama.cpp: a whole CodeGen, every key and tensor as the architecture has it.

    Raises InputError.
    """
    header = read_header(path)
    shapes = {t.name: Zeros(t.shape, torch.float32) for t in header.tensors}
    GGUF.decoder(gguf.geometry(path, header), shapes, str(path))
    gguf.tokenizer(path, header)
    for key in header.metadata:
        if key not in GGUF_KEYS and not key.startswith(SHOWN):
            raise InputError(f"{path}: metadata {key!r} is not CodeGen's; llama.cpp may obey it")
    for tensor in header.tensors:
        if len(tensor.shape) == 1 and tensor.type != "F32":
            raise InputError(
                f"{path}: tensor {tensor.name} is {tensor.type}; llama.cpp needs vectors as F32"
            )
        if tensor.type in NO_WEIGHTS:
            raise InputError(
                f"{path}: tensor {tensor.name} is {tensor.type}, not a type of weights"
            )
    _check_tokens(path, header)


def _check_tokens(path: Path, header: GgufHeader) -> None:
    """llama.cpp reads these arrays without a look at their types."""
    tokens = header.metadata["tokenizer.ggml.tokens"]
    if len(set(tokens)) != len(tokens):
        raise InputError(f"{path}: tokenizer.ggml.tokens has a token twice")
    if header.metadata["tokenizer.ggml.token_type"].dtype != np.dtype("<i4"):
        raise InputError(f"{path}: tokenizer.ggml.token_type is not of type int32")
    suppressed = header.metadata.get(SUPPRESSED, np.empty(0, np.int32))
    if not isinstance(suppressed, np.ndarray) or suppressed.dtype != np.dtype("<i4"):
        raise InputError(f"{path}: {SUPPRESSED} is not an array of int32")
    if suppressed.size and not 0 <= suppressed.min() <= suppressed.max() < len(tokens):
        raise InputError(f"{path}: {SUPPRESSED} names an id that no token has")


def admit_onnx(graph: Path) -> None:
    """A graph for onnxruntime: its data inside the folder, only operators that cgconvert writes.

    Raises InputError.
    """
    onnx.decoded_tensors(graph)
    model = onnx.parse(graph)
    if model.functions or model.training_info or model.graph.sparse_initializer:
        raise InputError(f"{graph}: has functions or other parts that no graph of cgconvert has")
    if {entry.domain for entry in model.opset_import} - {"", "ai.onnx", MICROSOFT}:
        raise InputError(f"{graph}: uses operators of another domain than ONNX Runtime's own")
    _check_constants(graph, model)
    _check_nodes(graph, model)


def _check_constants(graph: Path, model: ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            continue
        try:
            small = 0 <= min(tensor.dims, default=0) <= max(tensor.dims, default=0) <= SMALL
            small = small and len(tensor.dims) < 3
            small = small and onnx_package.numpy_helper.to_array(tensor).size <= SMALL
        except Exception as error:  # it trusts the tensor
            raise InputError(f"{graph}: tensor {tensor.name!r} is damaged: {error}") from error
        if not small:
            raise InputError(f"{graph}: tensor {tensor.name!r} is too large to be in the graph")


def _check_nodes(graph: Path, model: ModelProto) -> None:
    """Known operators, each after those whose outputs it takes, every name given once."""
    known = {value.name for value in model.graph.input}
    known |= {tensor.name for tensor in model.graph.initializer} | {""}
    for node in model.graph.node:
        if OPERATORS.get(node.op_type) != node.domain.removeprefix("ai.onnx"):
            kind = f"{node.domain}:{node.op_type}"
            raise InputError(
                f"{graph}: node {node.name!r} is {kind!r}, which cgconvert does not write"
            )
        if any(attribute.type not in _NUMBERS for attribute in node.attribute):
            raise InputError(f"{graph}: node {node.name!r} has an attribute that is no number")
        if unknown := [name for name in node.input if name not in known]:
            raise InputError(
                f"{graph}: node {node.name!r} takes {unknown[0]!r}, which nothing before it gives"
            )
        outputs = [name for name in node.output if name]
        if twice := [name for name in outputs if name in known]:
            raise InputError(f"{graph}: node {node.name!r} gives {twice[0]!r} a second time")
        known.update(outputs)


def admit_genai(folder: Path) -> None:
    """A folder for onnxruntime-genai: a graph as for onnxruntime, a genai_config.json that says
    nothing but what cgconvert writes, of the graph that is there. Raises InputError.
    """
    where = folder / "genai_config.json"
    told = read_json(where)
    model = told.get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    name = decoder.get("filename") if isinstance(decoder, dict) else None
    if not isinstance(name, str) or ".." in Path(name).parts or Path(name).is_absolute():
        raise InputError(f"{where}: names the graph {name!r}, outside the folder")
    if len(name) > 200:
        raise InputError(f"{where}: names the graph {name!r}, too long a name")
    graph = folder / name
    if not graph.is_file():
        raise InputError(f"{where}: names the graph {name!r}, which is not there")
    admit_onnx(graph)
    Tokenizer.load(folder)
    options = decoder.get("session_options") if isinstance(decoder, dict) else None
    cuda = isinstance(options, dict) and bool(options.get("provider_options"))
    written = genai_config(_cache_geometry(graph), 0, name, "cuda" if cuda else "cpu")
    _check_within(told, written, where, "")
    decoder, sizes = told["model"]["decoder"], written["model"]["decoder"]
    for key in ("head_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads"):
        if decoder.get(key) != sizes[key]:
            raise InputError(f"{where}: {key} is {decoder.get(key)!r}, the graph has {sizes[key]}")


def _cache_geometry(graph: Path) -> Geometry:
    """Layers and heads as the graph's cache has them; the other sizes stand for any."""
    past = [v for v in onnx.parse(graph).graph.input if v.name.startswith("past_key_values.")]
    shapes = {tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in past}
    shape = shapes.pop() if len(shapes) == 1 else ()
    if len(shape) != 4 or len(past) % 2:
        raise InputError(f"{graph}: not a decoder with a KV cache: its inputs are other ones")
    _, heads, _, size = shape
    try:
        return Geometry(len(past) // 2, heads * size, heads, 2, 1, 1, 0)
    except InputError as error:
        raise InputError(f"{graph}: {error}") from None


def _check_within(told: Any, wanted: Any, where: Path, key: str) -> None:
    """`told` has no entry that `wanted` lacks, each of its type; text and lists are the same."""
    if isinstance(wanted, Mapping) and isinstance(told, Mapping):
        for name, value in told.items():
            if name not in wanted:
                raise InputError(f"{where}: has {key}{name}, which cgconvert does not write")
            _check_within(value, wanted[name], where, f"{key}{name}.")
    elif type(told) is not type(wanted) or (isinstance(told, str | list) and told != wanted):
        raise InputError(f"{where}: {key[:-1]} is {told!r}, not as cgconvert writes it")
    elif isinstance(told, int) and not 0 <= told <= 1 << 22:
        raise InputError(f"{where}: {key[:-1]} is {told}, an impossible number")
