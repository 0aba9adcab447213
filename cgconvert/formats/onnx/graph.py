"""The decoder as an ONNX graph, node by node.

One layer is `x + attn(ln(x)) + mlp(ln(x))`, said in ONNX Runtime's fused operators:
SkipLayerNormalization adds the branches and the bias of fc_out and normalizes the sum for the
next layer, GroupQueryAttention holds rotary embedding, causal mask and KV cache, FastGelu the bias
of fc_in. Operators: docs/ContribOperators.md of onnxruntime.

Where the graph computes in float16, the residual stream and its norms stay in float32: a sum over
all layers may leave float16's range where no branch does, and onnxruntime's CUDA kernel adds up a
norm's squares in the type it gets. Attention has float32 scores and softmax in any case.

onnxruntime 1.22 runs the float graphs, 1.23 (8 bits in GatherBlockQuantized) the quantized ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import TensorProto

from cgconvert.codecs.matmul_nbits import MatMulNBits
from cgconvert.codecs.quantized_tensor import block_codec_of
from cgconvert.formats.onnx.builder import GraphBuilder
from cgconvert.formats.onnx.inputs import (
    BATCH,
    INT64,
    KEEP,
    LENGTH,
    attention_bias,
    interface,
    kept,
    lengths,
)
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


def build(
    geometry: Geometry,
    variant: Variant,
    tensor_plans: Sequence[TensorPlan],
    data: str,
    adjusted: Sequence[str] = (),
) -> bytes:
    """The serialized model, its initializers pointing into the file `data` beside it.

    `adjusted` are the names of vectors that calibration has changed.
    """
    return _Decoder(geometry, variant, tensor_plans).serialize(data, adjusted)


class _Decoder:
    def __init__(
        self, geometry: Geometry, variant: Variant, tensor_plans: Sequence[TensorPlan]
    ) -> None:
        self.geometry, self.variant = geometry, variant
        self.tensor_plans = {tensor_plan.name: tensor_plan for tensor_plan in tensor_plans}
        self.graph = GraphBuilder(variant.plain.name)
        self.hidden = (BATCH, LENGTH, geometry.n_embd)

    def serialize(self, data: str, adjusted: Sequence[str]) -> bytes:
        interface(self.graph, self.geometry, self.variant)
        lengths(self.graph, self.variant)
        if self.variant.has_bias:
            attention_bias(self.graph)
        self._layers()
        for tensor_plan in self.tensor_plans.values():
            for array_plan in tensor_plan.arrays:
                self.graph.external(array_plan, data)
        facts = [(ROTARY_ORDER, "half_split"), (ROTARY_BASE, repr(self.geometry.rotary_base))]
        if not self.variant.has_bias:
            facts.append((PADDING, "after"))
        if adjusted:
            facts.append((ADJUSTED, ",".join(adjusted)))
        return self.graph.serialize("codegen", facts)

    def _layers(self) -> None:
        top = ONNX.model
        residual = self._cast(self._embedding(self.tensor_plans[top["wte"]]), FLOAT)
        first = [ONNX.layer[part].format(i=0) for part in ("ln_weight", "ln_bias")]
        normed = self.graph.node(
            "LayerNormalization", [residual, *first], "layers.0.normed", self.hidden, FLOAT,
            axis=-1, epsilon=self.geometry.layer_norm_epsilon,
        )  # fmt: skip
        for i in range(self.geometry.n_layer):
            residual, normed = self._layer(i, residual, self._cast(normed, self.graph.type))
        normed = self._cast(normed, self.graph.type)
        if self.variant.client == "transformers.js":
            normed = self._last(normed)
        logits = self._linear("lm_head", top["head"], normed, kept(self.variant))
        self.graph.node("Add", [logits, top["head_bias"]], "logits")

    def _cast(self, value: str, kind: int) -> str:
        """A hidden state as float32 or in the graph's own type; itself where the two are one."""
        if self.graph.type == FLOAT:
            return value
        name = f"{value}.{TensorProto.DataType.Name(kind).lower()}"
        return self.graph.node("Cast", [value], name, self.hidden, kind, to=kind)

    def _last(self, normed: str) -> str:
        """The last num_logits_to_keep tokens: from -n to the end, where -0 is the beginning."""
        graph = self.graph
        graph.constant("end", INT64, [1], [2**63 - 1])
        graph.node("Reshape", [KEEP, "one_int64"], "keep", (1,), INT64)
        graph.node("Neg", ["keep"], "first_kept", (1,), INT64)
        shape = (BATCH, kept(self.variant), self.geometry.n_embd)
        return graph.node("Slice", [normed, "first_kept", "end", "one_int64"], "last", shape)

    def _embedding(self, tensor_plan: TensorPlan) -> str:
        codec = block_codec_of(tensor_plan.encoding)
        if not isinstance(codec, MatMulNBits):
            return self.graph.node(
                "Gather", [tensor_plan.name, "input_ids"], "embedding", self.hidden
            )
        codes, scales, *zeros = self._blocks(tensor_plan)
        return self.graph.node(
            "GatherBlockQuantized", [codes, "input_ids", scales, *zeros], "embedding", self.hidden,
            bits=codec.bits, block_size=codec.block_size,
            gather_axis=0, quantize_axis=1,
        )  # fmt: skip

    def _layer(self, i: int, residual: str, normed: str) -> tuple[str, str]:
        """Returns the residual stream after layer `i` and its normalization by the next norm."""
        g, graph = self.geometry, self.graph
        name = {part: pattern.format(i=i) for part, pattern in ONNX.layer.items()}
        attention = self._attention(i, self._linear(f"layers.{i}.qkv", QKV.format(i=i), normed))
        attention = self._linear(f"layers.{i}.attention_out", name["o"], attention)
        inner = self._linear(f"layers.{i}.fc1", name["fc_in"], normed)
        inner = graph.node(
            "FastGelu", [inner, name["fc_in_bias"]], f"layers.{i}.gelu", (BATCH, LENGTH, g.n_inner)
        )
        mlp = self._linear(f"layers.{i}.fc2", name["fc_out"], inner)
        branches = graph.node("Add", [attention, mlp], f"layers.{i}.branches", self.hidden)
        branches = self._cast(branches, FLOAT)
        last = i + 1 == g.n_layer
        if last:
            norm = [ONNX.model[part] for part in ("ln_f_weight", "ln_f_bias")]
        else:
            norm = [ONNX.layer[part].format(i=i + 1) for part in ("ln_weight", "ln_bias")]
        normed, summed = f"layers.{i + 1}.normed", f"layers.{i + 1}.residual"
        graph.node(
            "SkipLayerNormalization", [branches, residual, *norm, name["fc_out_bias"]],
            normed, self.hidden, FLOAT,
            more=() if last else ("", "", graph.declare(summed, self.hidden, FLOAT)),
            epsilon=g.layer_norm_epsilon,
        )  # fmt: skip
        return summed, normed

    def _attention(self, i: int, qkv: str) -> str:
        g = self.geometry
        past, present = (
            [f"{side}.{i}.{part}" for part in ("key", "value")]
            for side in ("past_key_values", "present")
        )
        bias = ["", "attention_bias"] if self.variant.has_bias else []
        return self.graph.node(
            "GroupQueryAttention",
            [qkv, "", "", *past, "seqlens_k", "total", COS, SIN, *bias],
            f"layers.{i}.attention", self.hidden, more=present,
            num_heads=g.n_head, kv_num_heads=g.n_head, do_rotary=1, rotary_interleaved=0,
        )  # fmt: skip

    def _linear(self, output: str, weight: str, value: str, length: str = LENGTH) -> str:
        tensor_plan = self.tensor_plans[weight]
        codec = block_codec_of(tensor_plan.encoding)
        if not isinstance(codec, MatMulNBits):
            shape = (BATCH, length, tensor_plan.source.shape[1])
            return self.graph.node("MatMul", [value, weight], output, shape)
        n, blocks = tensor_plan.arrays[1].shape  # its scales: the source may be bytes
        k = blocks * codec.block_size
        codes, scales, *zeros = self._blocks(tensor_plan)
        return self.graph.node(
            "MatMulNBits", [value, codes, scales, *zeros], output, (BATCH, length, n),
            N=n, K=k, bits=codec.bits, block_size=codec.block_size,
            accuracy_level=self.variant.accuracy_level,
        )  # fmt: skip

    def _blocks(self, tensor_plan: TensorPlan) -> list[str]:
        """Names of a tensor's arrays. In a float32 graph the float16 scales lie behind a Cast,
        which onnxruntime folds when it loads: half the bytes, and the speed is the same."""
        codes, scales, *zeros = tensor_plan.arrays
        name = scales.name
        if self.variant.dtype == "float32":
            kind = self.graph.type
            name = self.graph.node("Cast", [name], f"{name}.float32", scales.shape, to=kind)
        return [codes.name, name, *(array_plan.name for array_plan in zeros)]
