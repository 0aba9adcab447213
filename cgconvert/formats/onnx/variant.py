"""The variants of the ONNX graph: type, file name, and the encoding of each tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cgconvert.codecs.encoding import F16, F32, Encoding, FloatEncoding
from cgconvert.codecs.matmul_nbits import MatMulNBits
from cgconvert.codecs.matmul_nbits_choices import ACCURACY_LEVELS
from cgconvert.errors import UsageError
from cgconvert.formats.onnx.choices import CLIENTS, TARGETS

__all__ = ["Variant"]

HEAD_BLOCK_SIZE = 128

_STEMS = {
    ("float32", None): "model",
    ("float16", None): "model_fp16",
    ("float32", 8): "model_int8",
    ("float32", 4): "model_q4",
    ("float16", 4): "model_q4f16",
}
"""transformers.js' names (src/utils/dtypes.js), which the Hub and optimum follow."""


@dataclass(frozen=True)
class Variant:
    """The options of a graph.

    `dtype` is the type of activations and KV cache, and of the matrices if `bits` is None.

    4-bit blocks have zero points unless `symmetric`. 8-bit blocks never have, because they would
    cost 0.25 bits per weight and gain almost nothing. `accuracy_level` is the type in which
    MatMulNBits may compute. For the `client` transformers.js the graph has the input
    num_logits_to_keep, which optimum does not feed. For the `target` cuda it is float16, symmetric
    and without attention bias, so it does not support padding before a prompt.

    Raises UsageError for a value that does not exist and a combination that has no file name.
    """

    dtype: str = "float32"
    bits: int | None = None
    block_size: int = 32
    symmetric: bool = False
    accuracy_level: int = 4
    client: str = "any"
    target: str = "cpu"

    def __post_init__(self) -> None:
        if (self.dtype, self.bits) not in _STEMS:
            raise UsageError(
                f"no ONNX variant with dtype {self.dtype} and {self.bits} bits; "
                "float32 goes with 4 or 8 bits, float16 with 4, and each alone"
            )
        if self.client not in CLIENTS:
            raise UsageError(f"client {self.client!r}: give {' or '.join(CLIENTS)}")
        if self.target not in TARGETS:
            raise UsageError(f"target {self.target!r}: give {' or '.join(TARGETS)}")
        if self.target == "cuda" and self.dtype != "float16":
            raise UsageError(
                f"target cuda with dtype {self.dtype}: GroupQueryAttention has no {self.dtype} "
                'there; add `dtype="float16"`'
            )
        if self.accuracy_level not in ACCURACY_LEVELS:
            raise UsageError(f"accuracy level {self.accuracy_level}: give 0, 1, 2, 3 or 4")
        _ = self.matrix  # raises UsageError for a wrong block size

    @property
    def stem(self) -> str:
        """The name of the graph's file without its suffix."""
        return _STEMS[self.dtype, self.bits]

    @property
    def transformers_js(self) -> str:
        """The name of this dtype in transformers.js."""
        return self.stem.removeprefix("model").removeprefix("_") or "fp32"

    @property
    def type(self) -> str:
        """The stored type in plans, manifests and folder names."""
        return f"int{self.bits}" if self.bits else self.dtype

    @property
    def has_bias(self) -> bool:
        """Whether attention has a bias, which hides padding before a prompt."""
        return self.target != "cuda"

    @property
    def norm(self) -> FloatEncoding:
        """The encoding of layer norms and of fc_out's bias, which the residual stream adds."""
        return F32

    @property
    def plain(self) -> FloatEncoding:
        """The encoding of other unquantized tensors: biases, rotary tables, float matrices."""
        return F16 if self.dtype == "float16" else F32

    @property
    def matrix(self) -> Encoding:
        """The encoding of the matrices in the layers."""
        return self._block_codec(self.bits) if self.bits else self.plain

    def head(self, width: int) -> Encoding:
        """Return the encoding of the head, whose rows have `width` columns.

        A quantized head always has 8 bits, because its errors are errors of the logits, which
        nothing averages out. If the other matrices have 4 bits, its blocks have 128 columns, if
        128 divides `width`: onnxruntime adds 8 bytes to each block when it loads the graph, so
        larger blocks make a step 10% faster, and on the embedded model the KL divergence grows
        only from 1.16e-3 to 1.18e-3. With 8-bit matrices it would grow by 30%.
        """
        if not self.bits:
            return self.plain
        block_size = self.block_size
        if self.bits == 4 and width % HEAD_BLOCK_SIZE == 0:
            block_size = max(block_size, HEAD_BLOCK_SIZE)
        return MatMulNBits(8, block_size, symmetric=True)

    @property
    def embedding(self) -> Encoding:
        """The encoding of the embedding: 8 bits if quantized.

        A step reads only one of its rows, so its size costs no speed, and on the embedded model 4
        bits would lose more here (KL 4.0e-4) than in all other matrices (1.4e-4).
        """
        return self._block_codec(8, table=True) if self.bits else self.plain

    @property
    def options(self) -> dict[str, Any]:
        """The options that the manifest records."""
        common = {"dtype": self.dtype, "client": self.client, "target": self.target}
        if self.bits is None:
            return common
        return common | {
            "bits": self.bits,
            "block_size": self.block_size,
            "symmetric": self._symmetric(self.bits),
            "accuracy_level": self.accuracy_level,
        }

    def _symmetric(self, bits: int) -> bool:
        """Return whether blocks of this number of bits have no zero points."""
        return self.symmetric or bits == 8 or self.target == "cuda"

    def _block_codec(self, bits: int, table: bool = False) -> MatMulNBits:
        """Return the codec of a matrix, or of a table whose rows are looked up if `table`."""
        return MatMulNBits(bits, self.block_size, self._symmetric(bits), table)
