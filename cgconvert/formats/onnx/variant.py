"""The variants of the ONNX graph: type, file names and how each kind of tensor is encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cgconvert.codecs.encoding import F16, F32, Encoding, FloatEncoding
from cgconvert.codecs.matmul_nbits import MatMulNBits
from cgconvert.errors import UsageError

__all__ = ["ACCURACY_LEVELS", "CLIENTS", "TARGETS", "Variant"]

ACCURACY_LEVELS = (0, 1, 2, 3, 4)
"""MatMulNBits' accuracy_level: the operator's choice, float32, float16, bfloat16, int8."""

HEAD_BLOCK = 128

CLIENTS = ("any", "transformers.js")
TARGETS = ("cpu", "cuda")

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
    """`dtype` is the type of activations and KV cache, `bits` that of the matrices if not `dtype`.

    4-bit blocks have zero points unless `symmetric`, 8-bit blocks never: there 0.25 bits a weight
    more buy almost nothing. `accuracy_level` says in what MatMulNBits may compute. For the `client`
    transformers.js the graph has its input num_logits_to_keep, which optimum does not feed. For the
    `target` cuda it is float16, symmetric and without attention bias, and so without padding before
    a prompt. Raises UsageError for a combination without a name and a value that does not exist.
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
        _ = self.matrix  # which knows its block sizes

    @property
    def stem(self) -> str:
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
        """Whether attention gets a bias, for padding before a prompt."""
        return self.target != "cuda"

    @property
    def norm(self) -> FloatEncoding:
        """The type of what is added to the residual stream or normalizes it: always float32."""
        return F32

    @property
    def plain(self) -> FloatEncoding:
        """The type of whatever else is not quantized: biases, rotary tables."""
        return F16 if self.dtype == "float16" else F32

    @property
    def matrix(self) -> Encoding:
        return self._blocks(self.bits) if self.bits else self.plain

    def head(self, width: int) -> Encoding:
        """8 bits always: an error here is an error of the logits, which nothing averages out.

        Beside matrices of 4 bits in blocks of 128, where rows of `width` divide into them:
        onnxruntime adds 8 bytes to a block when it loads, so larger ones make a step 10% faster,
        and on the embedded model KL grows from 1.16e-3 to 1.18e-3. At 8 bits it would grow by 30%.
        """
        if not self.bits:
            return self.plain
        larger = self.bits == 4 and width % HEAD_BLOCK == 0
        size = max(self.block_size, HEAD_BLOCK) if larger else self.block_size
        return MatMulNBits(8, size, symmetric=True)

    @property
    def embedding(self) -> Encoding:
        """8 bits always: a step reads one row of it, so its size costs no speed, and on the
        embedded model 4 bits here lose more (KL 4.0e-4) than in all the matrices (1.4e-4)."""
        return self._blocks(8, table=True) if self.bits else self.plain

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
        return self.symmetric or bits == 8 or self.target == "cuda"

    def _blocks(self, bits: int, table: bool = False) -> MatMulNBits:
        return MatMulNBits(bits, self.block_size, self._symmetric(bits), table)
