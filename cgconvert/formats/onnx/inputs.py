"""The inputs and outputs of the graph, and how its attention uses the mask.

Inputs: input_ids, attention_mask (0 for padding, which lies before the tokens or, as genai has
it, after the prompt), position_ids, and past_key_values.N.key and .value for each layer.
Outputs: logits after every token, and present.N.key and .value.

For transformers.js also num_logits_to_keep: logits after the last that many tokens alone, 0 for
all. With a default in the graph it would be no input to onnxruntime-node, which lists only what
has to be fed, and every onnxruntime would warn of it; without one optimum does not feed it.

position_ids is there because clients expect it, and is not used. A token's rotary position is
its place in the cache, padding counted, and attention sees only differences of positions, so
a padded prompt gets what it gets alone. GroupQueryAttention's own position_ids would break
that: of a prompt it takes the first alone (onnxruntime 1.32), of a later token its own.
"""

from __future__ import annotations

from onnx import TensorProto

from cgconvert.formats.onnx.builder import GraphBuilder
from cgconvert.formats.onnx.variant import Variant
from cgconvert.model.decoder import Geometry

__all__ = [
    "BATCH",
    "INT64",
    "KEEP",
    "LENGTH",
    "attention_bias",
    "interface",
    "kept",
    "lengths",
]

# transformers.js makes the empty cache from these names: the batch must be called just that.
BATCH, LENGTH = "batch_size", "sequence_length"
PAST, TOTAL = "past_sequence_length", "total_sequence_length"
KEEP = "num_logits_to_keep"

INT32, INT64, BOOL = TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL


def interface(graph: GraphBuilder, g: Geometry, variant: Variant) -> None:
    """Declare inputs and outputs."""
    graph.input("input_ids", (BATCH, LENGTH), INT64)
    graph.input("attention_mask", (BATCH, TOTAL), INT64)
    graph.input("position_ids", (BATCH, LENGTH), INT64)
    if variant.client == "transformers.js":
        graph.input(KEEP, (), INT64)
    graph.output("logits", (BATCH, kept(variant), g.vocab_size))
    for i in range(g.n_layer):
        for part in ("key", "value"):
            graph.input(f"past_key_values.{i}.{part}", (BATCH, g.n_head, PAST, g.head_dim))
            graph.output(f"present.{i}.{part}", (BATCH, g.n_head, TOTAL, g.head_dim))


def kept(variant: Variant) -> str:
    """How many tokens have logits."""
    return "num_logits" if variant.client == "transformers.js" else LENGTH


def lengths(graph: GraphBuilder, variant: Variant) -> None:
    """The cache's length, `total`, and the place of each row's newest token in it, `seqlens_k`.

    A row that starts with a token has as many as the mask has ones: genai pads after the prompt and
    then goes on at the end of the mask, while the new tokens' keys take the places of the padding.
    A row that starts with padding is full to its end and has an attention bias, which the operator
    does not take on CUDA, or only outside flash attention: a graph for CUDA takes no such rows.
    """
    graph.constant("one", INT32, [], [1])
    graph.constant("one_int64", INT64, [1], [1])
    graph.node("Shape", ["attention_mask"], "total_int64", (1,), INT64, start=1)
    graph.node("Cast", ["total_int64"], "total", (1,), INT32, to=INT32)
    used = graph.node(
        "ReduceSum", ["attention_mask", "one_int64"], "tokens", (BATCH,), INT64, keepdims=0
    )
    if variant.has_bias:
        graph.constant("zero", INT64, [], [0])
        graph.node("Cast", ["attention_mask"], "is_token", (BATCH, TOTAL), BOOL, to=BOOL)
        graph.node("Gather", ["is_token", "zero"], "starts", (BATCH,), BOOL, axis=1)
        used = graph.node("Where", ["starts", used, "total_int64"], "used", (BATCH,), INT64)
    graph.node("Cast", [used], "used_int32", (BATCH,), INT32, to=INT32)
    graph.node("Sub", ["used_int32", "one"], "seqlens_k", (BATCH,), INT32)


def attention_bias(graph: GraphBuilder) -> None:
    """0 for a token, hugely negative for padding before it: half of the type's lowest number.

    The lowest itself would overflow to -inf where a negative score is added, and padding that
    sees only padding would become NaN.
    """
    lowest = -1.7e38 if graph.type == TensorProto.FLOAT else -32752.0
    graph.constant("seen", graph.type, [], [0.0])
    graph.constant("unseen", graph.type, [], [lowest])
    graph.constant("head_and_query", INT64, [2], [1, 2])
    graph.constant("ones", INT64, [2], [1, 1])
    graph.node("Unsqueeze", ["starts", "one_int64"], "row_starts", (BATCH, 1), BOOL)
    graph.node("Or", ["is_token", "row_starts"], "is_seen", (BATCH, TOTAL), BOOL)
    graph.node("Where", ["is_seen", "seen", "unseen"], "key_bias", (BATCH, TOTAL))
    graph.node("Unsqueeze", ["key_bias", "head_and_query"], "row_bias", (BATCH, 1, 1, TOTAL))
    graph.node("Shape", ["input_ids"], "length", (1,), INT64, start=1)
    graph.node("Concat", ["ones", "length", "one_int64"], "bias_shape", (4,), INT64, axis=0)
    shape = (BATCH, 1, LENGTH, TOTAL)
    graph.node("Expand", ["row_bias", "bias_shape"], "attention_bias", shape)
