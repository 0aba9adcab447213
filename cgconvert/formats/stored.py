"""An artefact as it is stored: its tensors by name, what each should hold, what its headers claim.

Nothing is refused here that can be read at all: a tensor that is missing or a header that says
something else is a finding, not an error.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cgconvert.errors import UsageError
from cgconvert.formats.gguf import reader as gguf
from cgconvert.formats.gguf.header import read_header
from cgconvert.formats.gguf.writer import ADJUSTED, ARCHITECTURE, IMATRIX
from cgconvert.formats.huggingface import config_reader as configs
from cgconvert.formats.huggingface import weight_files as weights
from cgconvert.formats.huggingface.config import codegen_config, phi_config
from cgconvert.formats.onnx import reader as onnx
from cgconvert.formats.onnx.genai import genai_config
from cgconvert.formats.onnx.weights import ADJUSTED as ADJUSTED_IN_GRAPH
from cgconvert.formats.onnx.weights import (
    COS,
    QKV,
    ROTARY_BASE,
    ROTARY_ORDER,
    SIN,
    rotary_tables,
)
from cgconvert.formats.read import huggingface_decoder
from cgconvert.model.decoder import Decoder, Geometry
from cgconvert.model.tensor import InMemory, LazyTensor, Stored, Zeros
from cgconvert.model.tensor_names import CODEGEN, GGUF, ONNX, PHI, TensorNames

__all__ = ["StoredArtefact", "open_stored", "stored_decoder"]

GROUPS = 4
"""transformers' mp_num for CodeGen (modeling_codegen.py: CodeGenAttention.forward)."""

ROTARY = 10000.0
"""transformers' rotary base for CodeGen (create_sinusoidal_positions), and Phi's default."""

NOT_MATHEMATICS = frozenset(
    ("architectures", "use_cache", "resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout",
     "initializer_range")
)  # fmt: skip

# What transformers takes where a config.json does not say.
DEFAULTS: Mapping[str, Any] = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "qk_layernorm": False,
    "rope_theta": ROTARY,
    "rope_type": "default",
    "rope_scaling": None,
}
ABSENT = "absent"


@dataclass(frozen=True)
class StoredArtefact:
    """`tensors` by their names; `expected` maps each name to what it should hold, in the order of
    rows it should have there; `optional` may be absent, `ignored` are there and not used.

    `differences` says, one phrase each, where the headers' geometry is not the source's. `adjusted`
    are vectors that the artefact itself says calibration has changed; one that names any has
    matrices rounded with error feedback. `weighted` artefacts say that they were made with an
    imatrix.
    """

    tensors: Mapping[str, LazyTensor]
    expected: Mapping[str, LazyTensor]
    optional: frozenset[str]
    ignored: frozenset[str]
    differences: tuple[str, ...]
    adjusted: frozenset[str] = frozenset()
    weighted: bool = False


def open_stored(artefact: Path, format: str, source: Decoder) -> StoredArtefact:  # noqa: A002
    """Only headers are read. Raises InputError where the artefact cannot be read at all."""
    if format not in _FORMATS:
        raise UsageError(f"nothing here reads {format!r}; there are {', '.join(_FORMATS)}")
    return _FORMATS[format](artefact, source)


def stored_decoder(artefact: Path, format: str) -> Decoder:  # noqa: A002
    """The model that an artefact's own weights and headers make, read decoded.

    Raises InputError where they make none.
    """
    if format == "gguf":
        return gguf.decoder(artefact)
    if format == "onnx":
        return onnx.decoder(artefact)
    where = artefact / "config.json"
    return huggingface_decoder(
        artefact, weights.find(artefact)[1], configs.read_json(where), where, GROUPS
    )


def _huggingface(folder: Path, source: Decoder) -> StoredArtefact:
    config = configs.read_json(folder / "config.json")
    tensors = weights.read(weights.find(folder)[1])
    g = source.geometry
    if config.get("model_type") == "phi":
        # transformers 5 reads rope_parameters, others the top level: each where it is there.
        rope = config.get("rope_parameters")
        rope = rope if isinstance(rope, dict) else {}
        wanted = phi_config(g, {}) | {"rope_scaling": None}
        inner = wanted.pop("rope_parameters")
        found = _differences({**rope, **config}, wanted)
        found += [f"rope_parameters: {t}" for t in _differences({**config, **rope}, inner)]
        return _bound(tensors, dict(_expected(source, PHI)), PHI, g, found)
    found = _differences(config, codegen_config(g, {}))
    if g.rotary_base != ROTARY:
        found.append(f"rotary base is {ROTARY:g}, not {g.rotary_base:g}")
    return _bound(tensors, dict(_expected(source, CODEGEN)), CODEGEN, g, found)


def _gguf(path: Path, source: Decoder) -> StoredArtefact:
    header, g = read_header(path), source.geometry
    wanted: dict[str, Any] = {
        "context_length": g.n_positions,
        "embedding_length": g.n_embd,
        "feed_forward_length": g.n_inner,
        "block_count": g.n_layer,
        "attention.head_count": g.n_head,
        "attention.head_count_kv": g.n_head,
        "attention.layer_norm_epsilon": float(np.float32(g.layer_norm_epsilon)),
        "rope.dimension_count": g.rotary_dim,
        "rope.freq_base": float(np.float32(g.rotary_base)),
    }
    wanted = {f"{ARCHITECTURE}.{key}": value for key, value in wanted.items()}
    found = _differences(header.metadata, {"general.architecture": ARCHITECTURE} | wanted)
    # llama.cpp obeys keys that CodeGen has no use for, such as a scaling of the rotary.
    found += [
        f"{key} is there, and CodeGen has none"
        for key in header.metadata
        if key.startswith(f"{ARCHITECTURE}.") and key not in wanted
    ]
    stored = _bound(gguf.tensors(path, header), dict(_expected(source, GGUF)), GGUF, g, found)
    told = header.metadata.get(ADJUSTED)
    return replace(
        stored,
        adjusted=frozenset(told if isinstance(told, list) else ()),
        weighted=f"{IMATRIX}.file" in header.metadata,
    )


def _onnx(path: Path, source: Decoder) -> StoredArtefact:
    graph, g = onnx.find_graph(path), source.geometry
    folder = onnx.folder_of(graph)
    tensors = onnx.decoded_tensors(graph)
    config = configs.read_json(folder / "config.json")
    found = _differences(config, codegen_config(g, {})) + _graph_differences(graph, g)
    if (folder / "genai_config.json").is_file():
        told = configs.read_json(folder / "genai_config.json").get("model")
        found += [f"genai_config.json: {text}" for text in _genai_differences(told, g)]
    expected = {
        name: tensor.T if len(tensor.shape) == 2 and isinstance(tensors.get(name), Stored)
        and name != ONNX.model["wte"] else tensor
        for name, tensor in _packed(_expected(source, ONNX), source)
    }  # fmt: skip
    cos, sin = rotary_tables(g)
    expected |= {COS: InMemory(cos), SIN: InMemory(sin)}
    told = _facts(graph).get(ADJUSTED_IN_GRAPH, "")
    stored = _bound(tensors, expected, ONNX, g, found)
    return replace(stored, adjusted=frozenset(filter(None, told.split(","))))


_FORMATS: Mapping[str, Callable[[Path, Decoder], StoredArtefact]] = {
    "huggingface": _huggingface,
    "gguf": _gguf,
    "onnx": _onnx,
}


def _expected(source: Decoder, names: TensorNames) -> Iterator[tuple[str, LazyTensor]]:
    """Every tensor of a layout, as the source has it, rows in the layout's order."""
    decoder = source.half_split() if names.half_split else source
    for part, name in names.model.items():
        yield name, getattr(decoder, part)
    for i, block in enumerate(decoder.layers):
        for part, name in names.layer.items():
            yield name.format(i=i), block.packed(GROUPS) if part == "qkv" else getattr(block, part)
        for name in names.zero_biases:
            yield name.format(i=i), Zeros((decoder.geometry.n_embd,), torch.float32)


def _packed(
    named: Iterator[tuple[str, LazyTensor]], source: Decoder
) -> Iterator[tuple[str, LazyTensor]]:
    """q, k and v of each layer as the one matrix that the graph has, in the place of its q."""
    blocks = source.half_split().layers
    packed = {ONNX.layer["q"].format(i=i): i for i in range(len(blocks))}
    apart = {ONNX.layer[part].format(i=i) for part in "kv" for i in range(len(blocks))}
    for name, tensor in named:
        if name in packed:
            yield QKV.format(i=packed[name]), blocks[packed[name]].qkv
        elif name not in apart:
            yield name, tensor


def _bound(
    tensors: Mapping[str, LazyTensor],
    expected: Mapping[str, LazyTensor],
    names: TensorNames,
    geometry: Geometry,
    differences: list[str],
) -> StoredArtefact:
    layers = range(geometry.n_layer)
    return StoredArtefact(
        tensors=tensors,
        expected=expected,
        optional=frozenset(name.format(i=i) for name in names.zero_biases for i in layers),
        ignored=frozenset(n.format(i=i) for n in names.dropped for i in layers) - expected.keys(),
        differences=tuple(differences),
    )


def _differences(told: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    found = []
    for key, value in wanted.items():
        if key in NOT_MATHEMATICS or (key == "n_ctx" and key not in told):
            continue
        said = told.get(key, DEFAULTS.get(key, ABSENT))
        if said is None and key == "n_inner":  # as transformers fills them
            said = 4 * wanted["n_embd"]
        if said is None and key == "num_key_value_heads":
            said = wanted["num_attention_heads"]
        if isinstance(said, np.ndarray) or said != value:  # an array is a value for each layer
            found.append(f"{key} is {reprlib.repr(said)}, not {value!r}")
    return found


def _genai_differences(told: Any, geometry: Geometry) -> list[str]:
    wanted = genai_config(geometry, 0, "")["model"]
    told = told if isinstance(told, dict) else {}
    decoder = told.get("decoder")
    sizes = ("head_size", "hidden_size", "num_attention_heads", "num_hidden_layers",
             "num_key_value_heads")  # fmt: skip
    return [
        *_differences(told, {key: wanted[key] for key in ("context_length", "vocab_size")}),
        *_differences(
            decoder if isinstance(decoder, dict) else {},
            {key: wanted["decoder"][key] for key in sizes},
        ),
    ]


def _facts(graph: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.parse(graph).metadata_props}


def _graph_differences(path: Path, g: Geometry) -> list[str]:
    """What the graph's own nodes say: how many layers, which heads, rotary and epsilon.

    A weight or a cache that no node reads is one too: under the noise of 4 bits, a small bias that
    is left out shows nowhere else.
    """
    model = onnx.parse(path)
    facts = _facts(path)
    wanted = {ROTARY_ORDER: "half_split", ROTARY_BASE: repr(g.rotary_base)}
    found = _differences(facts, wanted)
    epsilon = {"epsilon": float(np.float32(g.layer_norm_epsilon))}
    attention = {"num_heads": g.n_head, "kv_num_heads": g.n_head, "do_rotary": 1}
    there = [tensor.name for tensor in model.graph.initializer]
    there += [value.name for value in model.graph.input if value.name.startswith("past_")]
    read = {name for node in model.graph.node for name in node.input}
    found += [f"no node reads {name}" for name in there if name not in read]
    told: dict[str, list[dict[str, Any]]] = {}
    for node in model.graph.node:
        values = {a.name: a.f if a.type == a.FLOAT else a.i for a in node.attribute}
        told.setdefault(node.op_type, []).append(values)
    rules: tuple[tuple[str, int, dict[str, Any], dict[str, Any]], ...] = (
        ("LayerNormalization", 1, epsilon, {"axis": -1}),
        ("SkipLayerNormalization", g.n_layer, epsilon, {}),
        ("GroupQueryAttention", g.n_layer, attention, {"rotary_interleaved": 0}),
        ("FastGelu", g.n_layer, {}, {}),
    )
    for kind, count, needed, allowed in rules:
        nodes = told.get(kind, [])
        if len(nodes) != count:
            found.append(f"{len(nodes)} nodes {kind}, not {count}")
        for values in nodes:
            texts = _differences({**allowed, **values}, {**needed, **allowed})
            texts += [f"has {key}" for key in values if key not in needed | allowed]
            found += [f"{kind}: {text}" for text in texts if f"{kind}: {text}" not in found]
    return found
