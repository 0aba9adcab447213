"""The tensors of the graph, in the order in which the data file stores them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from cgconvert.codecs.encoding import Encoding
from cgconvert.codecs.matmul_nbits import MatMulNBits
from cgconvert.codecs.quantized_tensor import PackedRowsEncoding, QuantizedTensor
from cgconvert.formats.onnx.variant import Variant
from cgconvert.lazy import torch
from cgconvert.model.decoder import Decoder, Geometry, Layer
from cgconvert.model.dtype import FLOAT64, DType
from cgconvert.model.tensor import ALL, LazyTensor, StackedTensor
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
    "plan_tensors",
    "rotary_tables",
    "weights",
]

ROTARY_BASE, ROTARY_ORDER = "cgconvert.rotary_base", "cgconvert.rotary_order"
"""Metadata keys of the graph, for facts that neither the tensors nor config.json contain."""

PADDING = "cgconvert.padding"
"""Metadata key: its value is "after" if the graph does not support padding before a prompt."""

ADJUSTED = "cgconvert.adjusted"
"""Metadata key: the names of the vectors that calibration has changed, separated by commas."""

COS, SIN = ONNX.dropped
QKV = "model.layers.{i}.attn.qkv_proj.weight"

PAGE = 4096  # bytes
CACHE_LINE = 64  # bytes
LARGE = 1 << 20  # bytes from which a tensor begins at a page


@dataclass(frozen=True, eq=False)
class ComputedTable(LazyTensor):
    """A table of float64 that numpy has computed; a plan of it needs no torch."""

    array: np.ndarray

    @property
    def parents(self) -> tuple[LazyTensor, ...]:
        return ()

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.array.shape

    @property
    def dtype(self) -> DType:  # type: ignore[override]
        return FLOAT64

    def read(self, rows: slice = ALL, cols: slice = ALL) -> torch.Tensor:
        return torch.from_numpy(self.array[rows, cols]).contiguous()


def rotary_tables(geometry: Geometry) -> tuple[LazyTensor, LazyTensor]:
    """Compute cos and sin of position / base^(2i / rotary_dim).

    Returns two tensors, float64 [n_positions, rotary_dim / 2]. In float32 the angles would be wrong
    by up to 1e-4 at the end of the context. numpy computes them, because the last digit of torch's
    cos depends on the number of threads.
    """
    pair = np.arange(0, geometry.rotary_dim, 2, dtype=np.float64) / geometry.rotary_dim
    position = np.arange(geometry.n_positions, dtype=np.float64)
    angle = position[:, None] / geometry.rotary_base**pair
    return ComputedTable(np.cos(angle)), ComputedTable(np.sin(angle))


def weights(decoder: Decoder, variant: Variant) -> Iterator[tuple[str, LazyTensor, Encoding]]:
    """Yield name, tensor and encoding of every initializer; q and k are in half-split rotary order.

    Matrices that are already quantized for ONNX Runtime's operators keep their bytes.
    """
    decoder = decoder.half_split()
    plain, norm, top = variant.plain, variant.norm, ONNX.model
    cos, sin = rotary_tables(decoder.geometry)
    yield top["wte"], *_keep_packed(decoder.wte, variant.embedding)
    yield COS, cos, plain
    yield SIN, sin, plain
    for i, layer in enumerate(decoder.layers):
        name = {part: pattern.format(i=i) for part, pattern in ONNX.layer.items()}
        yield name["ln_weight"], layer.ln_weight, norm
        yield name["ln_bias"], layer.ln_bias, norm
        yield QKV.format(i=i), *_linear_weight(_qkv(layer), variant.matrix)
        yield name["o"], *_linear_weight(layer.o, variant.matrix)
        yield name["fc_in"], *_linear_weight(layer.fc_in, variant.matrix)
        yield name["fc_in_bias"], layer.fc_in_bias, plain
        yield name["fc_out"], *_linear_weight(layer.fc_out, variant.matrix)
        yield name["fc_out_bias"], layer.fc_out_bias, norm
    yield top["ln_f_weight"], decoder.ln_f_weight, norm
    yield top["ln_f_bias"], decoder.ln_f_bias, norm
    yield top["head"], *_linear_weight(decoder.head, variant.head(decoder.head.shape[1]))
    yield top["head_bias"], decoder.head_bias, plain


def plan_tensors(decoder: Decoder, variant: Variant) -> tuple[TensorPlan, ...]:
    """Plan the data file; large tensors begin at pages, so that onnxruntime can map them."""
    tensor_plans: list[TensorPlan] = []
    end = 0
    for name, source, encoding in weights(decoder, variant):
        # The stored size decides, so that the offset does not depend on the source's type.
        stored = source.shape[0] * encoding.arrays(source.shape)[0].row_bytes
        align = PAGE if stored >= LARGE else CACHE_LINE
        tensor_plans += lay_out([(name, source, encoding)], start=end, align=align)
        last = tensor_plans[-1].arrays[-1]
        end = last.offset + last.nbytes
    return tuple(tensor_plans)


def _linear_weight(tensor: LazyTensor, encoding: Encoding) -> tuple[LazyTensor, Encoding]:
    """Orient a matrix: MatMulNBits stores [out, in], a plain MatMul needs [in, out]."""
    if isinstance(encoding, MatMulNBits):
        return _keep_packed(tensor, encoding)
    return tensor.T, encoding


def _keep_packed(tensor: LazyTensor, encoding: Encoding) -> tuple[LazyTensor, Encoding]:
    """Replace a matrix that is already quantized for MatMulNBits by its packed rows.

    Other matrices, and the encoding of matrices that are not quantized, are returned unchanged.
    """
    if not isinstance(encoding, MatMulNBits) or not isinstance(tensor, QuantizedTensor):
        return tensor, encoding
    if not isinstance(tensor.codec, MatMulNBits):  # another format: the writer quantizes it again
        return tensor, encoding
    return tensor.arrays[0], PackedRowsEncoding(
        replace(tensor.codec, table=encoding.table), tensor.shape
    )


def _qkv(layer: Layer) -> LazyTensor:
    """Stack the rows of q, k and v; the result is quantized if all three have the same codec."""
    parts = [part for part in (layer.q, layer.k, layer.v) if isinstance(part, QuantizedTensor)]
    if len(parts) < 3 or len({part.codec.name for part in parts}) > 1:
        return layer.qkv
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    rows = StackedTensor([part.arrays[0] for part in parts])
    return QuantizedTensor((rows,), shape, parts[0].codec)
