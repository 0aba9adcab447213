"""Mistakes in an ONNX graph: its weights are all right, its nodes are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import helper

from cgconvert.model.checkpoint import Checkpoint
from tests.mutations.mutation import GEOMETRY, ONNX, Mutation, in_files

__all__ = ["GRAPHS"]

Change = Callable[[onnx.GraphProto], None]
ATTENTION = "GroupQueryAttention"
RUNTIME = ("runtime.relative_error", "runtime.nmse", "runtime.kl_mean", "runtime.graph")
PAST_KEY, PAST_VALUE = 3, 4
COS, SIN = 7, 8


def graph(name: str, caught_by: tuple[str, ...], change: Change) -> Mutation:
    def on(artefact: Path, _: Checkpoint) -> None:
        (path,) = (artefact / "onnx").glob("*.onnx")
        model = onnx.load(path, load_external_data=False)
        change(model.graph)
        path.write_bytes(model.SerializeToString())

    return in_files(name, "graph", caught_by, on, ONNX)


def nodes(graph: onnx.GraphProto, op: str) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == op]


def named(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    return next(node for node in graph.node if node.name == name)


def attribute(op: str, key: str, value: float) -> Change:
    """Of the second such node: the mistake of one layer."""

    def change(graph: onnx.GraphProto) -> None:
        node = nodes(graph, op)[1]
        kept = [a for a in node.attribute if a.name != key]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(key, value)])

    return change


def swapped_inputs(first: tuple[str, int], second: tuple[str, int]) -> Change:
    """Two inputs of nodes, each by name and place."""

    def change(graph: onnx.GraphProto) -> None:
        one, other = (named(graph, name).input for name, _ in (first, second))
        a, b = first[1], second[1]
        one[a], other[b] = other[b], one[a]

    return change


def swapped_outputs(first: str, second: str) -> Change:
    """Two outputs of the graph, each made by the node that made the other."""
    other = {first: second, second: first}

    def change(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            for place, name in enumerate(node.output):
                node.output[place] = other.get(name, name)

    return change


def input_of(node: str, place: int, value: str) -> Change:
    def change(graph: onnx.GraphProto) -> None:
        named(graph, node).input[place] = value

    return change


def activation(op: str, domain: str) -> Change:
    """FastGelu is tanh GELU of its input and a bias."""

    def change(graph: onnx.GraphProto) -> None:
        node = nodes(graph, "FastGelu")[1]
        inputs, output = list(node.input), node.output[0]
        place = list(graph.node).index(node)
        graph.node.remove(node)
        added = helper.make_node("Add", inputs, [f"{output}.biased"], f"{output}.biased")
        other = helper.make_node(op, [f"{output}.biased"], [output], output, domain=domain)
        graph.node.insert(place, other)
        graph.node.insert(place, added)

    return change


def no_bias_of_fc_out(graph: onnx.GraphProto) -> None:
    nodes(graph, "SkipLayerNormalization")[0].input.pop()


def no_bias_of_the_head(graph: onnx.GraphProto) -> None:
    named(graph, "logits").op_type = "Identity"
    named(graph, "logits").input.pop()


def forgetful(graph: onnx.GraphProto) -> None:
    """A layer's cache without its first position; the last is there twice, so lengths are right."""
    node = named(graph, "layers.1.attention")
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


def norm_of_another_layer(graph: onnx.GraphProto) -> None:
    first, last = nodes(graph, "LayerNormalization")[0], nodes(graph, "SkipLayerNormalization")[-1]
    last.input[2], last.input[3] = first.input[1], first.input[2]


GRAPHS = (
    graph("exact GELU in a layer", GEOMETRY, activation("Gelu", "com.microsoft")),
    graph("ReLU in a layer", GEOMETRY, activation("Relu", "")),
    graph("another scale of attention", GEOMETRY, attribute(ATTENTION, "scale", 0.25)),
    graph("a window on attention", GEOMETRY, attribute(ATTENTION, "local_window_size", 8)),
    graph("rotary interleaved in the operator", GEOMETRY,
          attribute(ATTENTION, "rotary_interleaved", 1)),
    graph("no rotary in a layer", GEOMETRY, attribute(ATTENTION, "do_rotary", 0)),
    graph("scores capped", GEOMETRY, attribute(ATTENTION, "softcap", 1.0)),
    graph("epsilon of one norm", GEOMETRY, attribute("SkipLayerNormalization", "epsilon", 1e-6)),
    graph("the cache of two layers exchanged on its way out", ("cache",),
          swapped_outputs("present.0.key", "present.1.key")),
    graph("keys and values exchanged in the cache", ("cache",),
          swapped_outputs("present.1.key", "present.1.value")),
    graph("the cache of two layers exchanged on its way in", ("cache",),
          swapped_inputs(("layers.0.attention", PAST_VALUE), ("layers.1.attention", PAST_VALUE))),
    graph("keys read from the cache of values", ("cache",),
          input_of("layers.1.attention", PAST_KEY, "past_key_values.1.value")),
    graph("a cache that forgets a position", ("cache",), forgetful),
    graph("padding not masked", ("batch",), input_of("key_bias", 2, "seen")),
    graph("sine and cosine exchanged", RUNTIME,
          swapped_inputs(("layers.1.attention", COS), ("layers.1.attention", SIN))),
    graph("bias of fc_out not used", GEOMETRY, no_bias_of_fc_out),
    graph("bias of the head not used", GEOMETRY, no_bias_of_the_head),
    graph("MLPs of two layers exchanged", (*RUNTIME, "weights.error"),
          swapped_inputs(("layers.0.fc1", 1), ("layers.1.fc1", 1))),
    graph("biases of two layers exchanged", RUNTIME,
          swapped_inputs(("layers.1.normed", 4), ("layers.2.normed", 4))),
    graph("attention of another layer", RUNTIME,
          input_of("layers.1.branches", 0, "layers.0.attention_out")),
    graph("attention left out of the sum", RUNTIME,
          input_of("layers.1.branches", 0, "layers.1.fc2")),
    graph("the MLP fed without its norm", RUNTIME,
          input_of("layers.1.fc1", 0, "layers.1.residual")),
    graph("the last norm is the first layer's", RUNTIME, norm_of_another_layer),
)  # fmt: skip
