"""The tensors of the graph: their names, in the order they lie in the data file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from cgconvert.codecs.encoding import Encoding
from cgconvert.codecs.matmul_nbits import MatMulNBits
from cgconvert.codecs.quantized_tensor import PackedRowsEncoding, QuantizedTensor
from cgconvert.formats.onnx.variant import Variant
from cgconvert.model.decoder import Decoder, Geometry, Layer
from cgconvert.model.tensor import InMemoryTensor, LazyTensor, StackedTensor
from cgconvert.model.tensor_names import ONNX
from cgconvert.write.plan import TensorPlan, lay_out

__all__ = [
    "ADJUSTED",
    "COS",
    "PADDING",
    "QKV",
    "ROTARY_BASE",
    "ROTARY_ORDER",
    "SIN",
    "place",
    "rotary_tables",
    "weights",
]

ROTARY_BASE, ROTARY_ORDER = "cgconvert.rotary_base", "cgconvert.rotary_order"
"""Metadata of the graph: what a reader cannot tell from the tensors or config.json."""

PADDING = "cgconvert.padding"
"""Metadata: "after" where the graph takes no padding before a prompt."""

ADJUSTED = "cgconvert.adjusted"
"""Metadata: names of the vectors that calibration has changed, commas between."""

COS, SIN = ONNX.dropped
QKV = "model.layers.{i}.attn.qkv_proj.weight"

PAGE = 4096
CACHE_LINE = 64
LARGE = 1 << 20


def rotary_tables(geometry: Geometry) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of position / base^(2i / rotary_dim), float64 [n_positions, rotary_dim / 2].

    Float64 because float32 angles are wrong by up to 1e-4 at the context's end, and numpy because
    torch's cos differs in the last place with the number of its threads.
    """
    pair = np.arange(0, geometry.rotary_dim, 2, dtype=np.float64) / geometry.rotary_dim
    position = np.arange(geometry.n_positions, dtype=np.float64)
    angle = position[:, None] / geometry.rotary_base**pair
    return torch.from_numpy(np.cos(angle)), torch.from_numpy(np.sin(angle))


def weights(decoder: Decoder, variant: Variant) -> Iterator[tuple[str, LazyTensor, Encoding]]:
    """Name, numbers and encoding of every initializer, q and k in half-split rotary order.

    Matrices that are coded for the operators already stay as they are.
    """
    decoder = decoder.half_split()
    plain, norm, top = variant.plain, variant.norm, ONNX.model
    cos, sin = rotary_tables(decoder.geometry)
    yield top["wte"], *_stored(decoder.wte, variant.embedding)
    yield COS, InMemoryTensor(cos), plain
    yield SIN, InMemoryTensor(sin), plain
    for i, layer in enumerate(decoder.layers):
        name = {part: pattern.format(i=i) for part, pattern in ONNX.layer.items()}
        yield name["ln_weight"], layer.ln_weight, norm
        yield name["ln_bias"], layer.ln_bias, norm
        yield QKV.format(i=i), *_matrix(_qkv(layer), variant.matrix)
        yield name["o"], *_matrix(layer.o, variant.matrix)
        yield name["fc_in"], *_matrix(layer.fc_in, variant.matrix)
        yield name["fc_in_bias"], layer.fc_in_bias, plain
        yield name["fc_out"], *_matrix(layer.fc_out, variant.matrix)
        yield name["fc_out_bias"], layer.fc_out_bias, norm
    yield top["ln_f_weight"], decoder.ln_f_weight, norm
    yield top["ln_f_bias"], decoder.ln_f_bias, norm
    yield top["head"], *_matrix(decoder.head, variant.head(decoder.head.shape[1]))
    yield top["head_bias"], decoder.head_bias, plain


def place(decoder: Decoder, variant: Variant) -> tuple[TensorPlan, ...]:
    """The data file: large tensors on page boundaries, so that onnxruntime can map them."""
    tensor_plans: list[TensorPlan] = []
    end = 0
    for name, source, encoding in weights(decoder, variant):
        # By what is stored, so that the place does not depend on the type of the source.
        stored = source.shape[0] * encoding.arrays(source.shape)[0].row_bytes
        align = PAGE if stored >= LARGE else CACHE_LINE
        tensor_plans += lay_out([(name, source, encoding)], start=end, align=align)
        last = tensor_plans[-1].arrays[-1]
        end = last.offset + last.nbytes
    return tuple(tensor_plans)


def _matrix(tensor: LazyTensor, encoding: Encoding) -> tuple[LazyTensor, Encoding]:
    """MatMulNBits keeps [out, in]; a plain MatMul wants [in, out]."""
    if isinstance(encoding, MatMulNBits):
        return _stored(tensor, encoding)
    return tensor.T, encoding


def _stored(tensor: LazyTensor, encoding: Encoding) -> tuple[LazyTensor, Encoding]:
    """The packed rows of a matrix that is quantized for MatMulNBits, in place of its numbers."""
    if not isinstance(encoding, MatMulNBits) or not isinstance(tensor, QuantizedTensor):
        return tensor, encoding
    if not isinstance(tensor.codec, MatMulNBits):  # of another format: decoded and rounded again
        return tensor, encoding
    return tensor.arrays[0], PackedRowsEncoding(
        replace(tensor.codec, table=encoding.table), tensor.shape
    )


def _qkv(layer: Layer) -> LazyTensor:
    """q, k and v one below the other, quantized where all of them are in one and the same way."""
    parts = [part for part in (layer.q, layer.k, layer.v) if isinstance(part, QuantizedTensor)]
    if len(parts) < 3 or len({part.codec.name for part in parts}) > 1:
        return layer.qkv
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    rows = StackedTensor([part.arrays[0] for part in parts])
    return QuantizedTensor((rows,), shape, parts[0].codec)
