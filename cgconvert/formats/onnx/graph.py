"""The decoder as an ONNX graph, node by node.

One layer is `x + attn(ln(x)) + mlp(ln(x))`, written with ONNX Runtime's fused operators
(docs/ContribOperators.md of onnxruntime): GroupQueryAttention computes the rotary embedding, the
causal mask and the KV cache, FastGelu adds the bias of fc_in, and SkipLayerNormalization adds both
branches and the bias of fc_out to the residual stream and normalizes the sum for the next layer.

If the graph computes in float16, the residual stream and its layer norms stay in float32, because
a sum over all layers may exceed the range of float16 even if no branch does, and because
onnxruntime's CUDA kernel sums a norm's squares in the type of its input. Attention computes scores
and softmax in float32 in either case.

Inputs: input_ids, attention_mask (0 for padding, which lies before the tokens or, for
onnxruntime-genai, after the prompt), position_ids, and past_key_values.N.key and .value for each
layer N. Outputs: logits after every token, and present.N.key and .value.

A graph for transformers.js has one more input, num_logits_to_keep: only so many tokens at the end
get logits, 0 means all. It has no default value in the graph, because onnxruntime-node lists only
the inputs that must be fed, and every onnxruntime would warn about it. But optimum does not feed
it, so other graphs do not have it.

position_ids is an input because clients expect it, but no node reads it. The rotary position of a
token is its position in the cache, padding included. Attention depends only on differences of
positions, so a padded prompt gives the same result as the prompt alone. GroupQueryAttention's own
input position_ids would break this: for a prompt the operator reads only the first position
(onnxruntime 1.32), for a later token the token's own.

onnxruntime 1.22 runs the float graphs, 1.23 (8 bits in GatherBlockQuantized) the quantized ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import TensorProto

from cgconvert.codecs.matmul_nbits import MatMulNBits
from cgconvert.codecs.quantized_tensor import block_codec_of
from cgconvert.formats.onnx.builder import GraphBuilder
from cgconvert.formats.onnx.variant import Variant
from cgconvert.formats.onnx.weights import (
    ADJUSTED,
    COS,
    PADDING,
    QKV,
    ROTARY_BASE,
    ROTARY_ORDER,
    SIN,
)
from cgconvert.model.decoder import Geometry
from cgconvert.model.tensor_names import ONNX
from cgconvert.write.plan import TensorPlan

__all__ = ["build"]

FLOAT = TensorProto.FLOAT
# transformers.js builds the empty cache from these names and requires "batch_size".
BATCH, LENGTH = "batch_size", "sequence_length"
PAST, TOTAL = "past_sequence_length", "total_sequence_length"
LOGITS_TO_KEEP = "num_logits_to_keep"

INT32, INT64, BOOL = TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL


def build(
    geometry: Geometry,
    variant: Variant,
    tensor_plans: Sequence[TensorPlan],
    data_file: str,
    adjusted: Sequence[str] = (),
) -> bytes:
    """Build the serialized model, whose initializers point into `data_file` in the same folder.

    `adjusted` are the names of vectors that calibration has changed.
    """
    return _DecoderGraph(geometry, variant, tensor_plans).serialize(data_file, adjusted)


class _DecoderGraph:
    """The nodes of all layers; `tensor_plans` are the tensors that become the initializers."""

    def __init__(
        self, geometry: Geometry, variant: Variant, tensor_plans: Sequence[TensorPlan]
    ) -> None:
        self.geometry, self.variant = geometry, variant
        self.tensor_plans = {tensor_plan.name: tensor_plan for tensor_plan in tensor_plans}
        self.graph = GraphBuilder(variant.plain.name)
        self.hidden_shape = (BATCH, LENGTH, geometry.n_embd)

    def serialize(self, data_file: str, adjusted: Sequence[str]) -> bytes:
        _declare_interface(self.graph, self.geometry, self.variant)
        _add_cache_lengths(self.graph, self.variant)
        if self.variant.has_bias:
            _add_attention_bias(self.graph)
        self._add_layers()
        for tensor_plan in self.tensor_plans.values():
            for array_plan in tensor_plan.arrays:
                self.graph.external(array_plan, data_file)
        properties = [(ROTARY_ORDER, "half_split"), (ROTARY_BASE, repr(self.geometry.rotary_base))]
        if not self.variant.has_bias:
            properties.append((PADDING, "after"))
        if adjusted:
            properties.append((ADJUSTED, ",".join(adjusted)))
        return self.graph.serialize("codegen", properties)

    def _add_layers(self) -> None:
        """Add all nodes from the embedding to the logits."""
        names = ONNX.model
        residual = self._cast(self._embedding(self.tensor_plans[names["wte"]]), FLOAT)
        first_norm = [ONNX.layer[part].format(i=0) for part in ("ln_weight", "ln_bias")]
        normed = self.graph.node(
            "LayerNormalization", [residual, *first_norm], "layers.0.normed",
            self.hidden_shape, FLOAT, axis=-1, epsilon=self.geometry.layer_norm_epsilon,
        )  # fmt: skip
        for i in range(self.geometry.n_layer):
            residual, normed = self._layer(i, residual, self._cast(normed, self.graph.type))
        normed = self._cast(normed, self.graph.type)
        if self.variant.client == "transformers.js":
            normed = self._keep_last(normed)
        logits = self._linear("lm_head", names["head"], normed, _logits_length(self.variant))
        self.graph.node("Add", [logits, names["head_bias"]], "logits")

    def _cast(self, value: str, elem_type: int) -> str:
        """Cast a hidden state to `elem_type`: float32 or the graph's own type.

        A graph of type float32 needs no Cast, so `value` itself is returned.
        """
        if self.graph.type == FLOAT:
            return value
        name = f"{value}.{TensorProto.DataType.Name(elem_type).lower()}"
        return self.graph.node("Cast", [value], name, self.hidden_shape, elem_type, to=elem_type)

    def _keep_last(self, normed: str) -> str:
        """Slice the last n = num_logits_to_keep tokens, from -n to the end; -0 keeps them all."""
        graph = self.graph
        graph.constant("end", INT64, [1], [2**63 - 1])
        graph.node("Reshape", [LOGITS_TO_KEEP, "one_int64"], "keep", (1,), INT64)
        graph.node("Neg", ["keep"], "first_kept", (1,), INT64)
        shape = (BATCH, _logits_length(self.variant), self.geometry.n_embd)
        return graph.node("Slice", [normed, "first_kept", "end", "one_int64"], "last", shape)

    def _embedding(self, tensor_plan: TensorPlan) -> str:
        """Look the input ids up in the embedding, plain or quantized."""
        codec = block_codec_of(tensor_plan.encoding)
        if not isinstance(codec, MatMulNBits):
            return self.graph.node(
                "Gather", [tensor_plan.name, "input_ids"], "embedding", self.hidden_shape
            )
        codes, scales, *zero_points = self._array_names(tensor_plan)
        return self.graph.node(
            "GatherBlockQuantized", [codes, "input_ids", scales, *zero_points],
            "embedding", self.hidden_shape, bits=codec.bits, block_size=codec.block_size,
            gather_axis=0, quantize_axis=1,
        )  # fmt: skip

    def _layer(self, i: int, residual: str, normed: str) -> tuple[str, str]:
        """Add layer `i`; returns the residual stream after it, and that stream normalized.

        The norm is the next layer's, or the final one after the last layer, which returns a
        residual stream that no node declares because nothing reads it.
        """
        g, graph = self.geometry, self.graph
        name = {part: pattern.format(i=i) for part, pattern in ONNX.layer.items()}
        attention = self._attention(i, self._linear(f"layers.{i}.qkv", QKV.format(i=i), normed))
        attention = self._linear(f"layers.{i}.attention_out", name["o"], attention)
        mlp_hidden = self._linear(f"layers.{i}.fc1", name["fc_in"], normed)
        mlp_hidden = graph.node(
            "FastGelu",
            [mlp_hidden, name["fc_in_bias"]],
            f"layers.{i}.gelu",
            (BATCH, LENGTH, g.n_inner),
        )
        mlp = self._linear(f"layers.{i}.fc2", name["fc_out"], mlp_hidden)
        branches = graph.node("Add", [attention, mlp], f"layers.{i}.branches", self.hidden_shape)
        branches = self._cast(branches, FLOAT)
        hidden = self.hidden_shape
        is_last = i + 1 == g.n_layer
        if is_last:
            next_norm = [ONNX.model[part] for part in ("ln_f_weight", "ln_f_bias")]
        else:
            next_norm = [ONNX.layer[part].format(i=i + 1) for part in ("ln_weight", "ln_bias")]
        next_normed, next_residual = f"layers.{i + 1}.normed", f"layers.{i + 1}.residual"
        graph.node(
            "SkipLayerNormalization", [branches, residual, *next_norm, name["fc_out_bias"]],
            next_normed, hidden, FLOAT,
            more=() if is_last else ("", "", graph.declare(next_residual, hidden, FLOAT)),
            epsilon=g.layer_norm_epsilon,
        )  # fmt: skip
        return next_residual, next_normed

    def _attention(self, i: int, qkv: str) -> str:
        """Attend over the cache of layer `i`, which grows from past to present."""
        g = self.geometry
        past, present = (
            [f"{cache}.{i}.{part}" for part in ("key", "value")]
            for cache in ("past_key_values", "present")
        )
        bias = ["", "attention_bias"] if self.variant.has_bias else []
        return self.graph.node(
            "GroupQueryAttention",
            [qkv, "", "", *past, "seqlens_k", "total", COS, SIN, *bias],
            f"layers.{i}.attention", self.hidden_shape, more=present,
            num_heads=g.n_head, kv_num_heads=g.n_head, do_rotary=1, rotary_interleaved=0,
        )  # fmt: skip

    def _linear(self, output: str, weight: str, value: str, length: str = LENGTH) -> str:
        """Multiply `value` by a matrix; `length` is the symbolic number of its tokens."""
        tensor_plan = self.tensor_plans[weight]
        codec = block_codec_of(tensor_plan.encoding)
        if not isinstance(codec, MatMulNBits):
            shape = (BATCH, length, tensor_plan.source.shape[1])
            return self.graph.node("MatMul", [value, weight], output, shape)
        # The scales tell the size: an already quantized matrix is stored as packed bytes.
        n, blocks = tensor_plan.arrays[1].shape
        k = blocks * codec.block_size
        codes, scales, *zero_points = self._array_names(tensor_plan)
        return self.graph.node(
            "MatMulNBits", [value, codes, scales, *zero_points], output, (BATCH, length, n),
            N=n, K=k, bits=codec.bits, block_size=codec.block_size,
            accuracy_level=self.variant.accuracy_level,
        )  # fmt: skip

    def _array_names(self, tensor_plan: TensorPlan) -> list[str]:
        """Return the names of a quantized matrix's codes, scales and zero points.

        A float32 graph casts the scales, which are stored as float16: they take half the bytes,
        and the speed is the same because onnxruntime folds the Cast when it loads the graph.
        """
        codes, scales, *zero_points = tensor_plan.arrays
        scales_name = scales.name
        if self.variant.dtype == "float32":
            scales_name = self.graph.node(
                "Cast", [scales.name], f"{scales.name}.float32", scales.shape, to=self.graph.type
            )
        return [codes.name, scales_name, *(array.name for array in zero_points)]


def _declare_interface(graph: GraphBuilder, g: Geometry, variant: Variant) -> None:
    """Declare the inputs and outputs of the graph."""
    graph.input("input_ids", (BATCH, LENGTH), INT64)
    graph.input("attention_mask", (BATCH, TOTAL), INT64)
    graph.input("position_ids", (BATCH, LENGTH), INT64)
    if variant.client == "transformers.js":
        graph.input(LOGITS_TO_KEEP, (), INT64)
    graph.output("logits", (BATCH, _logits_length(variant), g.vocab_size))
    for i in range(g.n_layer):
        for part in ("key", "value"):
            graph.input(f"past_key_values.{i}.{part}", (BATCH, g.n_head, PAST, g.head_dim))
            graph.output(f"present.{i}.{part}", (BATCH, g.n_head, TOTAL, g.head_dim))


def _logits_length(variant: Variant) -> str:
    """Return the symbolic number of tokens that get logits."""
    return "num_logits" if variant.client == "transformers.js" else LENGTH


def _add_cache_lengths(graph: GraphBuilder, variant: Variant) -> None:
    """Compute GroupQueryAttention's inputs from the mask: `total` and `seqlens_k`.

    `total` is the length of the cache with the new tokens. `seqlens_k` is, for each row of the
    batch, the number of positions that its last token may attend to, less one.

    A row that starts with a token has as many positions as its mask has ones. onnxruntime-genai
    pads such a row after the prompt and later appends ones at the end of the mask, but the operator
    writes the keys of the new tokens over the padding, so the count is right. A row that starts
    with padding uses all positions, and the attention bias hides the padding. The operator takes
    no attention bias on CUDA, or only without flash attention, so a graph for CUDA does not
    support such rows.
    """
    graph.constant("one", INT32, [], [1])
    graph.constant("one_int64", INT64, [1], [1])
    graph.node("Shape", ["attention_mask"], "total_int64", (1,), INT64, start=1)
    graph.node("Cast", ["total_int64"], "total", (1,), INT32, to=INT32)
    used_length = graph.node(
        "ReduceSum", ["attention_mask", "one_int64"], "tokens", (BATCH,), INT64, keepdims=0
    )
    if variant.has_bias:
        graph.constant("zero", INT64, [], [0])
        graph.node("Cast", ["attention_mask"], "is_token", (BATCH, TOTAL), BOOL, to=BOOL)
        graph.node("Gather", ["is_token", "zero"], "starts", (BATCH,), BOOL, axis=1)
        used_length = graph.node(
            "Where", ["starts", used_length, "total_int64"], "used", (BATCH,), INT64
        )
    graph.node("Cast", [used_length], "used_int32", (BATCH,), INT32, to=INT32)
    graph.node("Sub", ["used_int32", "one"], "seqlens_k", (BATCH,), INT32)


def _add_attention_bias(graph: GraphBuilder) -> None:
    """Compute what is added to attention scores: 0 for tokens, half of the type's lowest number for
    padding in rows that start with padding.

    The lowest number itself plus a negative score would overflow to -inf, and the softmax of a
    padding position, which attends only to padding, would be NaN.
    """
    half_lowest = -1.7e38 if graph.type == TensorProto.FLOAT else -32752.0
    graph.constant("seen", graph.type, [], [0.0])
    graph.constant("unseen", graph.type, [], [half_lowest])
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
