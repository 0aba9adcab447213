"""Read the arrays of an .npz lazily, in C order or in Fortran order.

numpy writes an array in Fortran order if its memory is in that order and not in C order, which a
transposed array's is. The file then has the elements of the transposed array, with all its axes
reversed, in C order.
Format: numpy's lib/format.py.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cgconvert.errors import InputError
from cgconvert.formats.headers import TensorLine
from cgconvert.io.reading import open_regular
from cgconvert.io.stored_zip import Member
from cgconvert.model.dtype import BFLOAT16, FLOAT16, FLOAT32
from cgconvert.model.tensor import LastAxis, LazyTensor, StoredTensor

__all__ = ["NpyArray", "read_array"]

DTYPES = {
    "<f4": FLOAT32,
    "<f2": FLOAT16,
    "|V2": BFLOAT16,  # numpy stores a type that it does not know as raw bytes
    "<V2": BFLOAT16,
}
MAX_NPY_HEADER = 4096  # bytes; numpy writes 128
MAX_AXES = 3


@dataclass(frozen=True)
class NpyArray:
    """One array of an archive.

    Attributes:
        shape: The array's shape.
        stored: The elements as they lie in the file; with all axes reversed in Fortran order.
        is_fortran: Whether they are in Fortran order.
    """

    shape: tuple[int, ...]
    stored: StoredTensor
    is_fortran: bool

    @property
    def name(self) -> str:
        """The name of the archive's member."""
        return self.stored.name

    @property
    def tensor(self) -> LazyTensor:
        """The whole array, of one or two axes."""
        return self.stored.T if self.is_fortran and len(self.shape) > 1 else self.stored

    def entry(self, index: int, name: str) -> LazyTensor:
        """The entry with this index of the first axis; `name` is its name in errors."""
        if self.is_fortran:
            last = LastAxis(replace(self.stored, name=name), index)
            return last.T if len(last.shape) > 1 else last
        shape = self.shape[1:]
        offset = self.stored.offset + index * math.prod(shape) * self.stored.dtype.itemsize
        return replace(self.stored, offset=offset, shape=shape, name=name)

    @property
    def line(self) -> TensorLine:
        """The array as `inspect` shows it."""
        kind = str(self.stored.dtype)
        return TensorLine(self.name, kind, self.shape, self.stored.nbytes)


def read_array(path: Path, member: Member) -> NpyArray:
    """Read the .npy header of a member of the archive at `path`.

    Raises InputError if it is no array of at most three axes in float32, float16 or bfloat16.
    """
    with open_regular(path) as file:
        file.seek(member.offset)
        header = io.BytesIO(file.read(min(MAX_NPY_HEADER, member.size)))
    try:
        read: Callable[..., tuple[tuple[int, ...], bool, np.dtype]] = (
            np.lib.format.read_array_header_1_0
            if np.lib.format.read_magic(header) == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, is_fortran, dtype = read(header)
    except Exception as error:  # numpy parses it as Python source, which fails in many ways
        raise InputError(f"{path}: {member.name} is not an array: {error}") from error
    if dtype.str not in DTYPES or dtype.names or dtype.subdtype:
        raise InputError(
            f"{path}: {member.name} holds {dtype.str}; expected float32, float16 or bfloat16"
        )
    kind = DTYPES[dtype.str]
    if len(shape) > MAX_AXES or not all(type(n) is int and 0 < n < 1 << 48 for n in shape):
        raise InputError(f"{path}: {member.name} has an impossible shape {list(shape)}")
    if header.tell() + math.prod(shape) * kind.itemsize != member.size:
        raise InputError(f"{path}: {member.name} is shorter or longer than its header says")
    in_file = tuple(reversed(shape)) if is_fortran else tuple(shape)
    start = member.offset + header.tell()
    stored = StoredTensor(path, start, in_file, kind, member.name)
    return NpyArray(tuple(shape), stored, bool(is_fortran))
