"""Check an ONNX folder before onnxruntime or onnxruntime-genai opens it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, ModelProto, TensorProto

from cgconvert.errors import InputError
from cgconvert.formats.onnx import reader
from cgconvert.formats.onnx.builder import MICROSOFT, OPERATORS
from cgconvert.formats.onnx.genai import genai_config
from cgconvert.io.strict_json import read_json
from cgconvert.model.decoder import Geometry
from cgconvert.model.tokenizer import Tokenizer

__all__ = ["admit_genai", "admit_onnx"]

SMALL = 64
"""The most elements of a tensor that is kept in the graph itself."""

_NUMBERS = (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.FLOATS)


def admit_onnx(graph: Path) -> None:
    """Check that a graph has its data in its folder, and only operators that cgconvert writes.

    Raises InputError.
    """
    reader.decoded_tensors(graph)
    model = reader.parse(graph)
    if model.functions or model.training_info or model.graph.sparse_initializer:
        raise InputError(f"{graph}: has functions or other parts that no graph of cgconvert has")
    if {entry.domain for entry in model.opset_import} - {"", "ai.onnx", MICROSOFT}:
        raise InputError(f"{graph}: uses operators of another domain than ONNX Runtime's own")
    _check_constants(graph, model)
    _check_nodes(graph, model)


def _check_constants(graph: Path, model: ModelProto) -> None:
    """Check that tensors in the graph itself are small."""
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            continue
        try:
            is_small = 0 <= min(tensor.dims, default=0) <= max(tensor.dims, default=0) <= SMALL
            is_small = is_small and len(tensor.dims) < 3
            is_small = is_small and onnx.numpy_helper.to_array(tensor).size <= SMALL
        except Exception as error:  # onnx does not check the tensor
            raise InputError(f"{graph}: tensor {tensor.name!r} is damaged: {error}") from error
        if not is_small:
            raise InputError(f"{graph}: tensor {tensor.name!r} is too large to be in the graph")


def _check_nodes(graph: Path, model: ModelProto) -> None:
    """Check that operators are known, come after those whose outputs they take, and that no name
    is given twice."""
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
    """Check the graph and genai_config.json of a folder for onnxruntime-genai.

    The configuration may contain only what cgconvert writes for that graph. Raises InputError.
    """
    config_path = folder / "genai_config.json"
    config = read_json(config_path)
    model = config.get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    name = decoder.get("filename") if isinstance(decoder, dict) else None
    if not isinstance(name, str) or ".." in Path(name).parts or Path(name).is_absolute():
        raise InputError(f"{config_path}: names the graph {name!r}, outside the folder")
    if len(name) > 200:
        raise InputError(f"{config_path}: names the graph {name!r}, too long a name")
    graph = folder / name
    if not graph.is_file():
        raise InputError(f"{config_path}: names the graph {name!r}, which is not there")
    admit_onnx(graph)
    Tokenizer.load(folder)
    options = decoder.get("session_options") if isinstance(decoder, dict) else None
    cuda = isinstance(options, dict) and bool(options.get("provider_options"))
    written = genai_config(_cache_geometry(graph), 0, name, "cuda" if cuda else "cpu")
    _check_within(config, written, config_path, "")
    decoder, sizes = config["model"]["decoder"], written["model"]["decoder"]
    for key in ("head_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads"):
        if decoder.get(key) != sizes[key]:
            raise InputError(
                f"{config_path}: {key} is {decoder.get(key)!r}, the graph has {sizes[key]}"
            )


def _cache_geometry(graph: Path) -> Geometry:
    """Read the numbers of layers and heads from the graph's cache; other sizes are arbitrary."""
    past = [v for v in reader.parse(graph).graph.input if v.name.startswith("past_key_values.")]
    shapes = {tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in past}
    shape = shapes.pop() if len(shapes) == 1 else ()
    if len(shape) != 4 or len(past) % 2:
        raise InputError(f"{graph}: not a decoder with a KV cache: its inputs are other ones")
    _, heads, _, size = shape
    try:
        return Geometry(len(past) // 2, heads * size, heads, 2, 1, 1, 0)
    except InputError as error:
        raise InputError(f"{graph}: {error}") from None


def _check_within(config: Any, written: Any, config_path: Path, key: str) -> None:
    """Check that each entry of a configuration is in `written` too, with the same type.

    Texts and lists must be equal, numbers only possible. `key` is the prefix of the entries' names.
    Raises InputError that names the entry.
    """
    if isinstance(written, Mapping) and isinstance(config, Mapping):
        for name, value in config.items():
            if name not in written:
                raise InputError(f"{config_path}: has {key}{name}, which cgconvert does not write")
            _check_within(value, written[name], config_path, f"{key}{name}.")
    elif type(config) is not type(written) or (
        isinstance(config, str | list) and config != written
    ):
        raise InputError(f"{config_path}: {key[:-1]} is {config!r}, not as cgconvert writes it")
    elif isinstance(config, int) and not 0 <= config <= 1 << 22:
        raise InputError(f"{config_path}: {key[:-1]} is {config}, an impossible number")
