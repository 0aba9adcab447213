"""Bugs in the nodes of an ONNX graph whose weights are right."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import onnx
from onnx import helper

from cgconvert.model.decoder import Checkpoint
from tests.mutations.mutation import GEOMETRY, ONNX, Mutation, in_files

__all__ = ["GRAPHS"]

Change = Callable[[onnx.GraphProto], None]
ATTENTION = "GroupQueryAttention"
RUNTIME = ("runtime.relative_error", "runtime.nmse", "runtime.kl_mean", "runtime.graph")
PAST_KEY, PAST_VALUE = 3, 4
COS, SIN = 7, 8


def graph_mutation(name: str, caught_by: tuple[str, ...], change: Change) -> Mutation:
    def change_files(artefact: Path, _: Checkpoint) -> None:
        (path,) = (artefact / "onnx").glob("*.onnx")
        model = onnx.load(path, load_external_data=False)
        change(model.graph)
        path.write_bytes(model.SerializeToString())

    return in_files(name, "graph", caught_by, change_files, ONNX)


def nodes_of_type(graph: onnx.GraphProto, op: str) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == op]


def node_named(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    nodes: Iterable[onnx.NodeProto] = graph.node
    return next(node for node in nodes if node.name == name)


def set_attribute(op: str, key: str, value: float) -> Change:
    """Set an attribute of the second node of a type, which is one layer's."""

    def change(graph: onnx.GraphProto) -> None:
        node = nodes_of_type(graph, op)[1]
        kept = [a for a in node.attribute if a.name != key]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(key, value)])

    return change


def swap_inputs(first: tuple[str, int], second: tuple[str, int]) -> Change:
    """Exchange two inputs, each given by its node's name and its index."""

    def change(graph: onnx.GraphProto) -> None:
        first_inputs, second_inputs = (node_named(graph, name).input for name, _ in (first, second))
        a, b = first[1], second[1]
        first_inputs[a], second_inputs[b] = second_inputs[b], first_inputs[a]

    return change


def swap_outputs(first: str, second: str) -> Change:
    """Exchange two outputs of the graph."""
    replaced = {first: second, second: first}

    def change(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            for place, name in enumerate(node.output):
                node.output[place] = replaced.get(name, name)

    return change


def set_input(node: str, place: int, value: str) -> Change:
    def change(graph: onnx.GraphProto) -> None:
        node_named(graph, node).input[place] = value

    return change


def replace_activation(op: str, domain: str) -> Change:
    """Replace FastGelu, which is tanh GELU of an input and a bias, in one layer."""

    def change(graph: onnx.GraphProto) -> None:
        node = nodes_of_type(graph, "FastGelu")[1]
        inputs, output = list(node.input), node.output[0]
        place = list(graph.node).index(node)
        graph.node.remove(node)
        added = helper.make_node("Add", inputs, [f"{output}.biased"], f"{output}.biased")
        replaced = helper.make_node(op, [f"{output}.biased"], [output], output, domain=domain)
        graph.node.insert(place, replaced)
        graph.node.insert(place, added)

    return change


def drop_fc_out_bias(graph: onnx.GraphProto) -> None:
    nodes_of_type(graph, "SkipLayerNormalization")[0].input.pop()


def drop_head_bias(graph: onnx.GraphProto) -> None:
    node_named(graph, "logits").op_type = "Identity"
    node_named(graph, "logits").input.pop()


def drop_first_position(graph: onnx.GraphProto) -> None:
    """Drop the first position of a layer's cache and repeat the last, so that lengths are right."""
    node = node_named(graph, "layers.1.attention")
    place = list(graph.node).index(node)
    for number, value in (("1", 1), ("end", 2**62), ("last", -1), ("axis", 2)):
        name = f"forgetful.{number}"
        graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.INT64, [1], [value]))
    bounds = ["forgetful.end", "forgetful.axis"]
    for input_ in (PAST_KEY, PAST_VALUE):
        past = node.input[input_]
        rest, last, out = (f"{past}.{part}" for part in ("rest", "last", "forgetful"))
        added = (
            helper.make_node("Slice", [past, "forgetful.1", *bounds], [rest]),
            helper.make_node("Slice", [past, "forgetful.last", *bounds], [last]),
            helper.make_node("Concat", [rest, last], [out], axis=2),
        )
        for new in reversed(added):
            graph.node.insert(place, new)
        node.input[input_] = out


def use_norm_of_first_layer(graph: onnx.GraphProto) -> None:
    first, last = (
        nodes_of_type(graph, "LayerNormalization")[0],
        nodes_of_type(graph, "SkipLayerNormalization")[-1],
    )
    last.input[2], last.input[3] = first.input[1], first.input[2]


GRAPHS = (
    graph_mutation("exact GELU in a layer", GEOMETRY, replace_activation("Gelu", "com.microsoft")),
    graph_mutation("ReLU in a layer", GEOMETRY, replace_activation("Relu", "")),
    graph_mutation("another scale of attention", GEOMETRY, set_attribute(ATTENTION, "scale", 0.25)),
    graph_mutation(
        "a window on attention", GEOMETRY, set_attribute(ATTENTION, "local_window_size", 8)
    ),
    graph_mutation(
        "rotary interleaved in the operator",
        GEOMETRY,
        set_attribute(ATTENTION, "rotary_interleaved", 1),
    ),
    graph_mutation("no rotary in a layer", GEOMETRY, set_attribute(ATTENTION, "do_rotary", 0)),
    graph_mutation("scores capped", GEOMETRY, set_attribute(ATTENTION, "softcap", 1.0)),
    graph_mutation(
        "epsilon of one norm", GEOMETRY, set_attribute("SkipLayerNormalization", "epsilon", 1e-6)
    ),
    graph_mutation(
        "the cache of two layers exchanged on its way out",
        ("cache",),
        swap_outputs("present.0.key", "present.1.key"),
    ),
    graph_mutation(
        "keys and values exchanged in the cache",
        ("cache",),
        swap_outputs("present.1.key", "present.1.value"),
    ),
    graph_mutation(
        "the cache of two layers exchanged on its way in",
        ("cache",),
        swap_inputs(("layers.0.attention", PAST_VALUE), ("layers.1.attention", PAST_VALUE)),
    ),
    graph_mutation(
        "keys read from the cache of values",
        ("cache",),
        set_input("layers.1.attention", PAST_KEY, "past_key_values.1.value"),
    ),
    graph_mutation("a cache that forgets a position", ("cache",), drop_first_position),
    graph_mutation("padding not masked", ("batch",), set_input("key_bias", 2, "seen")),
    graph_mutation(
        "sine and cosine exchanged",
        RUNTIME,
        swap_inputs(("layers.1.attention", COS), ("layers.1.attention", SIN)),
    ),
    graph_mutation("bias of fc_out not used", GEOMETRY, drop_fc_out_bias),
    graph_mutation("bias of the head not used", GEOMETRY, drop_head_bias),
    graph_mutation(
        "MLPs of two layers exchanged",
        (*RUNTIME, "weights.error"),
        swap_inputs(("layers.0.fc1", 1), ("layers.1.fc1", 1)),
    ),
    graph_mutation(
        "biases of two layers exchanged",
        RUNTIME,
        swap_inputs(("layers.1.normed", 4), ("layers.2.normed", 4)),
    ),
    graph_mutation(
        "attention of another layer",
        RUNTIME,
        set_input("layers.1.branches", 0, "layers.0.attention_out"),
    ),
    graph_mutation(
        "attention left out of the sum", RUNTIME, set_input("layers.1.branches", 0, "layers.1.fc2")
    ),
    graph_mutation(
        "the MLP fed without its norm", RUNTIME, set_input("layers.1.fc1", 0, "layers.1.residual")
    ),
    graph_mutation("the last norm is the first layer's", RUNTIME, use_norm_of_first_layer),
)
