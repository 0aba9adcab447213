"""Compare an ONNX folder with the source.

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
from cgconvert.formats.onnx.files import graphs
from cgconvert.formats.onnx.genai_checks import (
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

__all__ = ["settings", "stored_artefact"]


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
    present += [node.output[0] for node in model.graph.node if node.output]
    read |= {value.name for value in model.graph.output}
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
