"""Types of numbers, described without torch: headers and plans need a type's name and size alone.

A table of torch's own types would bring torch, which takes a second to import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cgconvert.lazy import torch

__all__ = [
    "BFLOAT16",
    "FLOAT16",
    "FLOAT32",
    "FLOAT64",
    "FLOATING_TYPES",
    "TORCH_DTYPES",
    "UINT8",
    "DType",
    "dtype_of",
]  # fmt: skip


@dataclass(frozen=True)
class DType:
    """A type of numbers.

    Attributes:
        name: torch's name of it, such as "bfloat16".
        itemsize: The bytes of a number; of a byte of numbers where several share it.
        is_floating_point: Whether the numbers are real and have an exponent.
    """

    name: str
    itemsize: int
    is_floating_point: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def torch_dtype(self) -> torch.dtype:
        """The same type as torch's own object."""
        dtype: torch.dtype = getattr(torch, self.name)
        return dtype


def dtype_of(torch_dtype: torch.dtype) -> DType:
    """Return the description of one of torch's types."""
    name = str(torch_dtype).removeprefix("torch.")
    return DType(name, torch_dtype.itemsize, torch_dtype.is_floating_point)


_FLOATS = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1, "float8_e5m2": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1,
}  # fmt: skip

_OTHERS = {
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2,
    "uint8": 1, "bool": 1, "complex128": 16, "complex64": 8, "complex32": 4,
    **{f"{sign}int{bits}": 1 for sign in ("", "u") for bits in range(1, 8)},
    "qint32": 4, "qint8": 1, "quint8": 1, "quint4x2": 1, "quint2x4": 1,
    "bits16": 2, "bits8": 1, "bits4x2": 1, "bits2x4": 1, "bits1x8": 1,
}  # fmt: skip

TORCH_DTYPES: Mapping[str, DType] = {
    **{name: DType(name, itemsize, is_floating_point=True) for name, itemsize in _FLOATS.items()},
    **{name: DType(name, itemsize) for name, itemsize in _OTHERS.items()},
}
"""torch's types by name. Older versions of torch lack some of them."""

FLOAT64, FLOAT32 = TORCH_DTYPES["float64"], TORCH_DTYPES["float32"]
FLOAT16, BFLOAT16 = TORCH_DTYPES["float16"], TORCH_DTYPES["bfloat16"]
UINT8 = TORCH_DTYPES["uint8"]

FLOATING_TYPES = (FLOAT64, FLOAT32, FLOAT16, BFLOAT16)
"""Types of weights. Types of 8 bits are not among them: they need scales."""
