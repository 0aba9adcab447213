"""Admit an ONNX folder to onnxruntime and onnxruntime-genai, and compare it with the source.

The comparison covers tensors, graph, configurations, ids and tokenizer.

This module uses nothing of the graph's builder, on purpose: a check that shared the writer's code
would share its mistakes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, TensorProto

from cgconvert.errors import InputError
from cgconvert.formats.comparison import (
    SettingsDifferences,
    StoredArtefact,
    as_mapping,
    expected_tensors,
    pair_tensors,
    value_differences,
)
from cgconvert.formats.huggingface.checks import (
    config_differences,
    generation_differences,
    tokenizer_differences,
)
from cgconvert.formats.huggingface.config import codegen_config
from cgconvert.formats.onnx import reader
from cgconvert.formats.onnx.builder import MICROSOFT, OPERATORS
from cgconvert.formats.onnx.files import graphs
from cgconvert.formats.onnx.genai_checks import (
    admit_genai_config,
    admit_genai_template,
    genai_setting_differences,
    genai_size_differences,
)
from cgconvert.formats.onnx.weights import (
    ADJUSTED,
    COS,
    QKV,
    ROTARY_BASE,
    ROTARY_ORDER,
    SIN,
    rotary_tables,
)
from cgconvert.io.strict_json import read_json
from cgconvert.model.decoder import Checkpoint, Decoder, Geometry
from cgconvert.model.tensor import LazyTensor, StoredTensor
from cgconvert.model.tensor_names import ONNX
from cgconvert.model.tokenizer import Tokenizer

__all__ = ["admit_genai", "admit_onnx", "settings", "stored_artefact"]


def stored_artefact(path: Path, source: Decoder) -> StoredArtefact:
    """Pair a graph's tensors with the source's; compare nodes and configurations with the geometry.

    In a graph float matrices are [in, out], quantized ones and the embedding are [out, in].
    """
    graph, g = reader.find_graph(path), source.geometry
    folder = reader.folder_of(graph)
    tensors = reader.decoded_tensors(graph)
    config = read_json(folder / "config.json")
    differences = config_differences(config, codegen_config(g, {}))
    differences += _graph_differences(graph, g)
    if (folder / "genai_config.json").is_file():
        genai = as_mapping(read_json(folder / "genai_config.json").get("model"))
        differences += [f"genai_config.json: {text}" for text in genai_size_differences(genai, g)]
    expected = {
        name: tensor.T if len(tensor.shape) == 2 and isinstance(tensors.get(name), StoredTensor)
        and name != ONNX.model["wte"] else tensor
        for name, tensor in _stack_qkv(expected_tensors(source, ONNX), source)
    }  # fmt: skip
    cos, sin = rotary_tables(g)
    expected |= {COS: cos, SIN: sin}
    adjusted = _metadata(graph).get(ADJUSTED, "")
    return replace(
        pair_tensors(tensors, expected, ONNX, g, differences),
        adjusted=frozenset(filter(None, adjusted.split(","))),
        computed=frozenset({COS, SIN}),
    )


def _stack_qkv(
    named: Iterator[tuple[str, LazyTensor]], source: Decoder
) -> Iterator[tuple[str, LazyTensor]]:
    """Replace q, k and v of each layer by the one matrix that the graph has, where q was."""
    layers = source.half_split().layers
    qkv_layers = {ONNX.layer["q"].format(i=i): i for i in range(len(layers))}
    k_and_v = {ONNX.layer[part].format(i=i) for part in "kv" for i in range(len(layers))}
    for name, tensor in named:
        if name in qkv_layers:
            yield QKV.format(i=qkv_layers[name]), layers[qkv_layers[name]].qkv
        elif name not in k_and_v:
            yield name, tensor


def _metadata(graph: Path) -> dict[str, str]:
    """Return the graph's metadata entries."""
    return {entry.key: entry.value for entry in reader.parse(graph).metadata_props}


def _graph_differences(path: Path, g: Geometry) -> list[str]:
    """Compare the graph's own nodes with the geometry: layers, heads, rotary and epsilon.

    A weight or a cache that no node reads is a difference too: with matrices of 4 bits no other
    check detects a missing small bias.
    """
    model = reader.parse(path)
    texts = value_differences(
        _metadata(path), {ROTARY_ORDER: "half_split", ROTARY_BASE: repr(g.rotary_base)}
    )
    present = [tensor.name for tensor in model.graph.initializer]
    present += [value.name for value in model.graph.input if value.name.startswith("past_")]
    read = {name for node in model.graph.node for name in node.input}
    texts += [f"no node reads {name}" for name in present if name not in read]
    attributes: dict[str, list[dict[str, Any]]] = {}
    for node in model.graph.node:
        values = {a.name: a.f if a.type == a.FLOAT else a.i for a in node.attribute}
        attributes.setdefault(node.op_type, []).append(values)
    epsilon = {"epsilon": float(np.float32(g.layer_norm_epsilon))}
    attention = {"num_heads": g.n_head, "kv_num_heads": g.n_head, "do_rotary": 1}
    # Operator, number of nodes, attributes that it must have, attributes that it may have.
    rules: tuple[tuple[str, int, dict[str, Any], dict[str, Any]], ...] = (
        ("LayerNormalization", 1, epsilon, {"axis": -1}),
        ("SkipLayerNormalization", g.n_layer, epsilon, {}),
        ("GroupQueryAttention", g.n_layer, attention, {"rotary_interleaved": 0}),
        ("FastGelu", g.n_layer, {}, {}),
    )
    for operator, count, needed, allowed in rules:
        nodes = attributes.get(operator, [])
        if len(nodes) != count:
            texts.append(f"{len(nodes)} nodes {operator}, not {count}")
        for values in nodes:
            faults = value_differences({**allowed, **values}, {**needed, **allowed})
            faults += [f"has {key}" for key in values if key not in needed | allowed]
            lines = [f"{operator}: {fault}" for fault in faults]
            texts += [line for line in lines if line not in texts]
    return texts


def settings(path: Path, source: Checkpoint) -> SettingsDifferences:
    """Compare generation settings, genai_config.json and tokenizer files with the source's."""
    graph = reader.find_graph(path)
    folder = reader.folder_of(graph)
    texts = generation_differences(folder, source)
    if (folder / "genai_config.json").is_file() and not _is_for_another(folder, graph):
        texts += genai_setting_differences(folder / "genai_config.json", graph, source)
    return SettingsDifferences(texts, list(tokenizer_differences(folder, source)))


def _is_for_another(folder: Path, graph: Path) -> bool:
    """Whether genai_config.json names another graph of the folder, which may have several."""
    model = as_mapping(read_json(folder / "genai_config.json").get("model"))
    name = as_mapping(model.get("decoder")).get("filename")
    return any(
        name == other.relative_to(folder).as_posix() for other in graphs(folder) if other != graph
    )


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


def admit_genai(folder: Path) -> Path:
    """Check the graph and genai_config.json of a folder for onnxruntime-genai; return the graph.

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
    admit_genai_config(config_path, graph)
    admit_genai_template(folder)
    return graph
