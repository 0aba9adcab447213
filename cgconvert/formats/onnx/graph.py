"""The decoder as an ONNX graph, node by node.

One layer is `x + attn(ln(x)) + mlp(ln(x))`, said in ONNX Runtime's fused operators:
SkipLayerNormalization adds the branches and the bias of fc_out and normalizes the sum for the
next layer, GroupQueryAttention holds rotary embedding, causal mask and KV cache, FastGelu the bias
of fc_in. Operators: docs/ContribOperators.md of onnxruntime.

onnxruntime 1.22 runs the float graphs, 1.23 (8 bits in GatherBlockQuantized) the quantized ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import TensorProto

from cgconvert.formats.onnx.builder import GraphBuilder
from cgconvert.formats.onnx.variant import Variant
from cgconvert.formats.onnx.weights import COS, QKV, ROTARY_BASE, ROTARY_ORDER, SIN
from cgconvert.model import Geometry
from cgconvert.names import ONNX
from cgconvert.quant.matmul_nbits import MatMulNBits
from cgconvert.stream.plan import Item

__all__ = ["build"]

# transformers.js makes the empty cache from these names: the batch must be called just that.
BATCH, LENGTH = "batch_size", "sequence_length"
PAST, TOTAL = "past_sequence_length", "total_sequence_length"
KEEP = "num_logits_to_keep"

INT32, INT64, BOOL = TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL


def build(geometry: Geometry, variant: Variant, items: Sequence[Item], data: str) -> bytes:
    """The serialized model, its initializers pointing into the file `data` beside it.

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
    return _Decoder(geometry, variant, items).serialize(data)


class _Decoder:
    def __init__(self, geometry: Geometry, variant: Variant, items: Sequence[Item]) -> None:
        self.geometry, self.variant = geometry, variant
        self.items = {item.name: item for item in items}
        self.graph = GraphBuilder(variant.plain.name)
        self.hidden = (BATCH, LENGTH, geometry.n_embd)

    def serialize(self, data: str) -> bytes:
        self._interface()
        self._lengths()
        self._attention_bias()
        self._layers()
        for item in self.items.values():
            for piece in item.pieces:
                self.graph.external(piece, data)
        facts = [(ROTARY_ORDER, "half_split"), (ROTARY_BASE, repr(self.geometry.rotary_base))]
        return self.graph.serialize("codegen", facts)

    def _interface(self) -> None:
        g, graph = self.geometry, self.graph
        graph.input("input_ids", (BATCH, LENGTH), INT64)
        graph.input("attention_mask", (BATCH, TOTAL), INT64)
        graph.input("position_ids", (BATCH, LENGTH), INT64)
        if self.variant.client == "transformers.js":
            graph.input(KEEP, (), INT64)
        graph.output("logits", (BATCH, self._kept, g.vocab_size))
        for i in range(g.n_layer):
            for part in ("key", "value"):
                graph.input(f"past_key_values.{i}.{part}", (BATCH, g.n_head, PAST, g.head_dim))
                graph.output(f"present.{i}.{part}", (BATCH, g.n_head, TOTAL, g.head_dim))

    def _lengths(self) -> None:
        """The cache's length, and in each row the place of its newest token, `seqlens_k`.

        A row that starts with padding is full to its end. One that starts with a token has as many
        as the mask has ones: genai pads after the prompt and then goes on at the end of the mask,
        while the new tokens' keys take the places of the padding.
        """
        graph = self.graph
        graph.constant("zero", INT64, [], [0])
        graph.constant("one", INT32, [], [1])
        graph.constant("one_int64", INT64, [1], [1])
        graph.node("Shape", ["attention_mask"], "total_int64", (1,), INT64, start=1)
        graph.node("Cast", ["total_int64"], "total", (1,), INT32, to=INT32)
        graph.node("Cast", ["attention_mask"], "is_token", (BATCH, TOTAL), BOOL, to=BOOL)
        graph.node("Gather", ["is_token", "zero"], "starts", (BATCH,), BOOL, axis=1)
        graph.node(
            "ReduceSum", ["attention_mask", "one_int64"], "tokens", (BATCH,), INT64, keepdims=0
        )
        graph.node("Where", ["starts", "tokens", "total_int64"], "used", (BATCH,), INT64)
        graph.node("Cast", ["used"], "used_int32", (BATCH,), INT32, to=INT32)
        graph.node("Sub", ["used_int32", "one"], "seqlens_k", (BATCH,), INT32)

    def _attention_bias(self) -> None:
        """0 for a token, hugely negative for padding before it: half of the type's lowest number.

        The lowest itself would overflow to -inf where a negative score is added, and padding that
        sees only padding would become NaN.
        """
        graph = self.graph
        lowest = -1.7e38 if self.variant.dtype == "float32" else -32752.0
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

    def _layers(self) -> None:
        top = ONNX.model
        residual = self._embedding(self.items[top["wte"]])
        first = [ONNX.block[part].format(i=0) for part in ("ln_weight", "ln_bias")]
        normed = self.graph.node(
            "LayerNormalization", [residual, *first], "layers.0.normed", self.hidden,
            axis=-1, epsilon=self.geometry.layer_norm_epsilon,
        )  # fmt: skip
        for i in range(self.geometry.n_layer):
            residual, normed = self._layer(i, residual, normed)
        if self.variant.client == "transformers.js":
            normed = self._last(normed)
        logits = self._linear("lm_head", top["head"], normed, self._kept)
        self.graph.node("Add", [logits, top["head_bias"]], "logits")

    @property
    def _kept(self) -> str:
        """How many tokens have logits."""
        return "num_logits" if self.variant.client == "transformers.js" else LENGTH

    def _last(self, normed: str) -> str:
        """The last num_logits_to_keep tokens: from -n to the end, where -0 is the beginning."""
        graph = self.graph
        graph.constant("end", INT64, [1], [2**63 - 1])
        graph.node("Reshape", [KEEP, "one_int64"], "keep", (1,), INT64)
        graph.node("Neg", ["keep"], "first_kept", (1,), INT64)
        shape = (BATCH, self._kept, self.geometry.n_embd)
        return graph.node("Slice", [normed, "first_kept", "end", "one_int64"], "last", shape)

    def _embedding(self, item: Item) -> str:
        if not isinstance(item.encoding, MatMulNBits):
            return self.graph.node("Gather", [item.name, "input_ids"], "embedding", self.hidden)
        codes, scales, *zeros = self._blocks(item)
        return self.graph.node(
            "GatherBlockQuantized", [codes, "input_ids", scales, *zeros], "embedding", self.hidden,
            bits=item.encoding.bits, block_size=item.encoding.block_size,
            gather_axis=0, quantize_axis=1,
        )  # fmt: skip

    def _layer(self, i: int, residual: str, normed: str) -> tuple[str, str]:
        """Returns the residual stream after layer `i` and its normalization by the next norm."""
        g, graph = self.geometry, self.graph
        name = {part: pattern.format(i=i) for part, pattern in ONNX.block.items()}
        attention = self._attention(i, self._linear(f"layers.{i}.qkv", QKV.format(i=i), normed))
        attention = self._linear(f"layers.{i}.attention_out", name["o"], attention)
        inner = self._linear(f"layers.{i}.fc1", name["fc_in"], normed)
        inner = graph.node(
            "FastGelu", [inner, name["fc_in_bias"]], f"layers.{i}.gelu", (BATCH, LENGTH, g.n_inner)
        )
        mlp = self._linear(f"layers.{i}.fc2", name["fc_out"], inner)
        skip = graph.node("Add", [residual, attention], f"layers.{i}.skip", self.hidden)
        last = i + 1 == g.n_layer
        if last:
            norm = [ONNX.model[part] for part in ("ln_f_weight", "ln_f_bias")]
        else:
            norm = [ONNX.block[part].format(i=i + 1) for part in ("ln_weight", "ln_bias")]
        normed, residual = f"layers.{i + 1}.normed", f"layers.{i + 1}.residual"
        graph.node(
            "SkipLayerNormalization", [mlp, skip, *norm, name["fc_out_bias"]], normed, self.hidden,
            more=() if last else ("", "", graph.declare(residual, self.hidden)),
            epsilon=g.layer_norm_epsilon,
        )  # fmt: skip
        return residual, normed

    def _attention(self, i: int, qkv: str) -> str:
        g = self.geometry
        past, present = (
            [f"{side}.{i}.{part}" for part in ("key", "value")]
            for side in ("past_key_values", "present")
        )
        return self.graph.node(
            "GroupQueryAttention",
            [qkv, "", "", *past, "seqlens_k", "total", COS, SIN, "", "attention_bias"],
            f"layers.{i}.attention", self.hidden, more=present,
            num_heads=g.n_head, kv_num_heads=g.n_head, do_rotary=1, rotary_interleaved=0,
        )  # fmt: skip

    def _linear(self, output: str, weight: str, value: str, length: str = LENGTH) -> str:
        item = self.items[weight]
        if not isinstance(item.encoding, MatMulNBits):
            shape = (BATCH, length, item.source.shape[1])
            return self.graph.node("MatMul", [value, weight], output, shape)
        n, k = item.source.shape
        codes, scales, *zeros = self._blocks(item)
        return self.graph.node(
            "MatMulNBits", [value, codes, scales, *zeros], output, (BATCH, length, n),
            N=n, K=k, bits=item.encoding.bits, block_size=item.encoding.block_size,
            accuracy_level=self.variant.accuracy_level,
        )  # fmt: skip

    def _blocks(self, item: Item) -> list[str]:
        """Names of an item's arrays. In a float32 graph the float16 scales lie behind a Cast,
        which onnxruntime folds when it loads: half the bytes, and the speed is the same."""
        codes, scales, *zeros = item.pieces
        name = scales.name
        if self.variant.dtype == "float32":
            kind = self.graph.type
            name = self.graph.node("Cast", [name], f"{name}.float32", scales.shape, to=kind)
        return [codes.name, name, *(piece.name for piece in zeros)]
