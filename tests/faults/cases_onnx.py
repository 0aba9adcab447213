"""Hostile ONNX folders: graphs that read other files, load code or never end; genai_config.json."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from tests.faults.cases_safetensors import edit_json, write_file
from tests.faults.cases_zip import change_bytes
from tests.faults.matrix import Case, Damage

__all__ = ["ONNXS"]

GRAPH, DATA = Path("onnx/model.onnx"), Path("onnx/model.onnx_data")
HEAD = "lm_head.weight"
ONNX = ("inspect", "verify", "generate", "genai", "to-gguf")


def change_graph(change: Callable[[ModelProto], object]) -> Damage:
    def damage(source: Path) -> None:
        model = onnx.load(source / GRAPH, load_external_data=False)
        change(model)
        (source / GRAPH).write_bytes(model.SerializeToString())

    return damage


def change_tensor(change: Callable[[TensorProto], object], name: str = HEAD) -> Damage:
    return change_graph(lambda m: change(next(t for t in m.graph.initializer if t.name == name)))


def change_external_data(key: str, value: str) -> Damage:
    def change(tensor: TensorProto) -> None:
        next(e for e in tensor.external_data if e.key == key).value = value

    return change_tensor(change)


def change_node(change: Callable[[NodeProto], object], kind: str = "MatMul") -> Damage:
    return change_graph(lambda m: change(next(n for n in m.graph.node if n.op_type == kind)))


def link_data(source: Path) -> None:
    (source / DATA).rename(source.parent / "elsewhere")
    (source / DATA).symlink_to(source.parent / "elsewhere")


def make_cyclic(model: ModelProto) -> None:
    first, last = model.graph.node[0], model.graph.node[-1]
    first.input[0] = last.output[0]


def add_subgraph(node: NodeProto) -> None:
    body = helper.make_graph([], "body", [], [])
    node.attribute.append(helper.make_attribute("body", body))


def hide_external_tensor(node: NodeProto) -> None:
    """Refer to an outside file from an attribute, which checks of initializers miss."""
    data = TensorProto(name="x", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    data.external_data.add(key="location", value="/etc/passwd")
    node.attribute.append(helper.make_attribute("value", data))


def add_context_operator(model: ModelProto) -> None:
    """Add an operator that loads a compiled model from a file."""
    model.graph.node.append(
        helper.make_node("EPContext", [], ["x"], domain="com.microsoft", ep_cache_context="/x.bin")
    )


def nest_messages(source: Path) -> None:
    raw = b""
    for _ in range(20_000):
        size = len(raw)
        raw = b"\x0a" + (bytes([size]) if size < 128 else b"\xff\xff\x01") + raw
    (source / GRAPH).write_bytes(raw)


def onnx_case(damage: Damage, message: str, **options: Any) -> Case:
    return Case("onnx", damage, message, "model.onnx", **({"commands": ONNX} | options))


def unrunnable_case(damage: Damage, message: str) -> Case:
    return onnx_case(damage, message, commands=("generate", "genai"))


def genai_case(change: Callable[[dict[str, Any]], object], message: str) -> Case:
    damage = edit_json("genai_config.json", lambda t: change(t) and None)
    return Case("onnx", damage, message, "genai_config.json", ("genai",))


ONNXS: dict[str, Case] = {
    "empty": onnx_case(write_file(str(GRAPH), b""), "not an ONNX graph"),
    "not protobuf": onnx_case(write_file(str(GRAPH), b"\xff" * 1000), "not an ONNX graph"),
    "a pickle": onnx_case(write_file(str(GRAPH), b"\x80\x02cos\nsystem\n."), "not an ONNX graph"),
    "messages in messages": onnx_case(nest_messages, "not an ONNX graph"),
    "5 MB": onnx_case(write_file(str(GRAPH), b"\0" * (5 << 20)), "weights inside"),
    "a million empty tensors": onnx_case(
        lambda s: (s / GRAPH).write_bytes(b"\x3a\x82\x89\x7a\x0a\0" + b"\x2a\0" * 1_000_000),
        "more nodes|not an ONNX graph",
    ),
    "data in the parent folder": onnx_case(
        change_external_data("location", "../model.onnx_data"), "outside"
    ),
    "data by an absolute path": onnx_case(
        change_external_data("location", "/etc/passwd"), "outside"
    ),
    "data through a link": onnx_case(link_data, "is a link"),
    "data past the end": onnx_case(change_external_data("offset", "99999999999"), "truncated"),
    "a negative offset": onnx_case(change_external_data("offset", "-64"), "not a number"),
    "an offset of 5000 digits": onnx_case(
        change_external_data("offset", "9" * 5000), "not a number"
    ),
    "another length": onnx_case(change_external_data("length", "64"), "64 bytes of data"),
    "data cut short": onnx_case(lambda s: os.truncate(s / DATA, 500_000), "truncated"),
    "no data": onnx_case(lambda s: (s / DATA).unlink(), "is not there"),
    "a shape that overflows": onnx_case(
        change_tensor(lambda t: t.dims.__setitem__(0, 1 << 62)), "shape"
    ),
    "a negative shape": onnx_case(change_tensor(lambda t: t.dims.__setitem__(0, -64)), "shape"),
    "a tensor twice": onnx_case(
        change_graph(lambda m: m.graph.initializer.append(m.graph.initializer[-1])), "twice"
    ),
    "a name that is no text": onnx_case(
        lambda s: change_bytes(GRAPH, lambda d: d.replace(b"lm_head.weight", b"lm_head.\xffeight"))(
            s
        ),
        "not text|not an ONNX",
    ),
    "a circle": unrunnable_case(change_graph(make_cyclic), "which nothing before it gives"),
    "a graph inside": unrunnable_case(change_node(add_subgraph), "an attribute that is no number"),
    "a file in an attribute": unrunnable_case(
        change_node(hide_external_tensor), "an attribute that is no number"
    ),
    "an operator that loads a file": unrunnable_case(
        change_graph(add_context_operator), "EPContext"
    ),
    "an operator of another domain": unrunnable_case(
        change_node(lambda n: setattr(n, "domain", "evil.ops")), "does not write"
    ),
    "another domain": unrunnable_case(
        change_graph(lambda m: m.opset_import.add(domain="evil.ops", version=1)), "another domain"
    ),
    "a function": unrunnable_case(
        change_graph(lambda m: m.functions.add(name="MatMul")), "has functions"
    ),
    "a huge constant": unrunnable_case(
        change_graph(lambda m: m.graph.initializer.add(name="z", data_type=1, dims=[1 << 40])),
        "too large to be in the graph",
    ),
    "a constant that lies": unrunnable_case(
        change_graph(
            lambda m: m.graph.initializer.add(name="z", data_type=1, dims=[4], raw_data=b"1")
        ),
        "is damaged",
    ),
    "quantized, of 3 bits": Case(
        "onnx-int4",
        lambda s: change_quantized(s, "bits", 3),
        "3 bits|attributes",
        "model_q4.onnx",
        ("generate", "verify", "genai"),
    ),
    "quantized, of another block": Case(
        "onnx-int4",
        lambda s: change_quantized(s, "block_size", 1 << 30),
        "block size|do not agree",
        "model_q4.onnx",
        ("generate", "verify", "genai"),
    ),
    "genai loads a library": genai_case(
        lambda t: t["model"]["decoder"]["session_options"].update(custom_ops_library="x.so"),
        "custom_ops_library, which cgconvert does not write",
    ),
    "genai asks for a provider": genai_case(
        lambda t: t["model"]["decoder"]["session_options"].update(provider_options=[{"x": {}}]),
        "provider_options",
    ),
    "genai names a graph elsewhere": genai_case(
        lambda t: t["model"]["decoder"].update(filename="../valid/x.onnx"), "outside the folder"
    ),
    "genai names another model": genai_case(
        lambda t: t["model"].update(vision={"filename": "x"}), "vision"
    ),
    "genai has a million layers": genai_case(
        lambda t: t["model"]["decoder"].update(num_hidden_layers=1_000_000), "num_hidden_layers"
    ),
    "genai has an endless context": genai_case(
        lambda t: t["model"].update(context_length=1 << 40), "impossible number"
    ),
}


def change_quantized(source: Path, attribute: str, value: int) -> None:
    path = source / "onnx/model_q4.onnx"
    model = onnx.load(path, load_external_data=False)
    node = next(n for n in model.graph.node if n.op_type == "MatMulNBits")
    next(a for a in node.attribute if a.name == attribute).i = value
    path.write_bytes(model.SerializeToString())
