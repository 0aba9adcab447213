"""The name of a GGUF file's type, which its path, manifest, bounds and verification share.

A name of llama.cpp, such as Q4_K_M, is only that of a file whose matrices have exactly the types
that llama-quantize gives them. A file that was calibrated has the name of what was demanded of it:

| name | demanded |
|---|---|
| 4.85bpw | at most 4.85 bits per weight, over all matrices: a size, or types that are no mix |
| kl0.01 | a loss of at most 0.01 nats per token |
| Q4_K_M-cal | this mix of types |

It is known before the types of the matrices are, and the file records it. A file that records none
and has no mix of llama.cpp has the name of its bits per weight.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cgconvert.formats.gguf.header import GgufHeader
from cgconvert.formats.gguf.type_choices import QUANTIZED_TYPES
from cgconvert.formats.gguf.types import TYPES
from cgconvert.model.tensor_names import GGUF

__all__ = [
    "CALIBRATED",
    "TYPE_KEY",
    "MatrixType",
    "bits_name",
    "calibrated_name",
    "contradictions",
    "is_type_name",
    "loss_name",
    "matrices_of",
    "mix_name",
    "standard_mix",
    "stored_name",
]

TYPE_KEY = "cgconvert.type"
"""The name of the file's type, if it is none of llama.cpp's."""

CALIBRATED = "-cal"
"""The end of the name of a standard mix that is fitted to a text."""

ROUNDING = 0.0051
"""How far a name of bits per weight can lie below the limit that it was rounded from."""

_BITS = re.compile(r"(\d{1,2}\.\d\d)bpw")
_LOSS = re.compile(r"kl\d+(\.\d+)?(e[-+]\d+)?")


@dataclass(frozen=True)
class MatrixType:
    """How one matrix is stored.

    Attributes:
        part: The field of Decoder or Layer that holds it; empty if CodeGen has no such matrix.
        layer: The index of its layer; None outside of the layers.
        type: The name of its encoding, such as Q4_K.
        weights: The number of its weights.
        nbytes: The number of its bytes.
    """

    part: str
    layer: int | None
    type: str
    weights: int
    nbytes: int

    @classmethod
    def of(cls, name: str, type: str, shape: Sequence[int], nbytes: int) -> MatrixType:  # noqa: A002
        """Describe the matrix of this name in a file."""
        return cls(*_place(name), type, math.prod(shape), nbytes)


def bits_name(nbytes: int, weights: int) -> str:
    """Name a type by its bits per weight, for matrices of so many bytes and weights together."""
    return f"{8 * nbytes / weights:.2f}bpw"


def loss_name(loss: float) -> str:
    """Name a type by its largest loss, in nats per token."""
    return f"kl{loss:g}"


def calibrated_name(mix: str) -> str:
    """Name the type of a standard mix that is fitted to a text."""
    return mix + CALIBRATED


def is_type_name(name: str) -> bool:
    """Tell whether a file can have a type of this name."""
    if name in TYPES:
        return True
    is_calibrated = name.endswith(CALIBRATED) and name.removesuffix(CALIBRATED) in QUANTIZED_TYPES
    return is_calibrated or any(form.fullmatch(name) for form in (_BITS, _LOSS))


def standard_mix(matrices: Iterable[MatrixType]) -> str | None:
    """Return llama.cpp's name for matrices of these types; None if it has none."""
    matrices = list(matrices)
    layers = 1 + max((matrix.layer for matrix in matrices if matrix.layer is not None), default=0)
    for name, file_type in TYPES.items():
        if matrices and all(
            matrix.type == file_type.encoding_of(matrix.part, matrix.layer or 0, layers).name
            for matrix in matrices
        ):
            return name
    return None


def mix_name(matrices: Iterable[MatrixType]) -> str:
    """Name the type of a file by the types of its matrices alone."""
    matrices = list(matrices)
    weights = sum(matrix.weights for matrix in matrices)
    return standard_mix(matrices) or bits_name(sum(m.nbytes for m in matrices), max(1, weights))


def matrices_of(header: GgufHeader) -> list[MatrixType]:
    """List the matrices of a file in the order of the file."""
    matrices = []
    for tensor in header.tensors:
        if len(tensor.shape) == 2:
            matrices.append(MatrixType.of(tensor.name, tensor.type, tensor.shape, tensor.nbytes))
    return matrices


def stored_name(header: GgufHeader) -> str | None:
    """Return the name of a file's type: the one that it records, or that of its matrices' types.

    None if the matrices are of one type that no file of cgconvert's has, or if there are none.
    """
    recorded = header.metadata.get(TYPE_KEY)
    if isinstance(recorded, str) and is_type_name(recorded):
        return recorded
    matrices = matrices_of(header)
    is_mixed = len({matrix.type for matrix in matrices}) > 1
    return mix_name(matrices) if is_mixed else standard_mix(matrices)


def contradictions(header: GgufHeader) -> list[str]:
    """List what the types of the matrices say against the name that a file records."""
    recorded, matrices = header.metadata.get(TYPE_KEY), matrices_of(header)
    if recorded is None or not matrices:
        return []
    if not isinstance(recorded, str) or not is_type_name(recorded):
        return [f"{TYPE_KEY} is {reprlib.repr(recorded)}, not the name of a type"]
    stored = mix_name(matrices)
    if bits := _BITS.fullmatch(recorded):
        rate = 8 * sum(m.nbytes for m in matrices) / max(1, sum(m.weights for m in matrices))
        is_kept = rate <= float(bits[1]) + ROUNDING
    else:
        is_kept = _LOSS.fullmatch(recorded) is not None or recorded == calibrated_name(stored)
    return [] if is_kept else [f"{TYPE_KEY} is {recorded}, and its matrices have {stored}"]


def _place(name: str) -> tuple[str, int | None]:
    """Find the part and layer of a matrix by its name in a file; "" if CodeGen has none of it."""
    for part, pattern in GGUF.model.items():
        if name == pattern:
            return part, None
    match = re.fullmatch(r"blk\.(\d{1,6})(\..*)", name)
    if match:
        for part, pattern in GGUF.layer.items():
            if pattern == "blk.{i}" + match[2]:
                return part, int(match[1])
    return "", None
