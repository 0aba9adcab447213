"""The header of a GGUF file: read strictly, and written by gguf's own writer.

Format: docs/gguf.md of ggml-org/ggml. The reader refuses whatever llama.cpp would refuse (the rules
of its ggml/src/gguf.cpp), and bounds time and memory. It reads nothing but the header.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
from gguf.gguf_writer import WriterState

from cgconvert.errors import InputError
from cgconvert.io.reading import open_regular, spend, timed_reading
from cgconvert.io.remembered import remembered
from cgconvert.io.stand_ins import check_head
from cgconvert.io.system.regular_files import size_of

__all__ = [
    "ALIGNMENT",
    "GgufHeader",
    "HeaderWriter",
    "TensorInfo",
    "padded",
    "read_header",
]

MAX_HEADER_BYTES = 32 << 20
"""The longest header: several times that of a file with 250,000 tokens."""
MAX_ENTRIES = 1 << 16
MAX_STRINGS = 1 << 20
"""The most strings in arrays: twice the tokens and merges of a vocabulary of 250,000."""
MAX_KEY_BYTES = (1 << 16) - 1
MAX_NAME_BYTES = 63  # GGML_MAX_NAME without the 0 at the end
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
MAX_ELEMENTS = 1 << 48

ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT
"""Files written here begin each tensor at a multiple of this number of bytes."""
ALIGNMENT_KEY = "general.alignment"

_UINT32, _BOOL, _STRING, _ARRAY = 4, 7, 8, 9
_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", _UINT32: "<u4", 5: "<i4", 6: "<f4", _BOOL: "<u1",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: `shape` is in torch's order ([rows, columns]), `type` is ggml's name of its type.

    `offset` counts bytes from the start of the file `path`.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int
    path: Path


@dataclass(frozen=True)
class GgufHeader:
    """The parsed header. In `metadata`, arrays of numbers are numpy arrays, those of strings lists.

    `data_start` counts bytes from the start of the file.
    """

    version: int
    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    data_start: int


def read_header(path: Path) -> GgufHeader:
    """Parse the header of a GGUF file.

    Raises InputError if the file is not a complete, well-formed GGUF of version 2 or 3 with numbers
    in little-endian order.
    """
    return remembered((read_header, path), lambda: _parse(path))


def _parse(path: Path) -> GgufHeader:
    check_head(path)
    try:
        with open_regular(path) as file, timed_reading(path):
            return _Parser(path, file, size_of(file.fileno())).header()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


class _Parser:
    """Reads a header; `position` is the next byte, `end` the first that may not be read."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size
        self.position, self.end = 0, min(size, MAX_HEADER_BYTES)
        self.strings = 0

    def fault(self, text: str) -> InputError:
        """Create an InputError with this text, which names the file."""
        return InputError(f"{self.path}: not a valid GGUF file: {text}; fetch or convert it again")

    def header(self) -> GgufHeader:
        """Parse the whole header and check that the data fits the file."""
        magic = self.file.read(4)
        self.position = 4
        if magic != b"GGUF":
            if not magic:
                raise self.fault("it is empty")
            raise self.fault("it does not begin with GGUF")
        version = self.number("<u4")
        if version not in (2, 3):
            order = " (big-endian?)" if version & 0xFFFF == 0 else ""
            raise self.fault(f"version {version}{order}, only 2 and 3 are known")
        n_tensors, n_entries = self.number("<u8"), self.number("<u8")
        for count, description in ((n_tensors, "tensors"), (n_entries, "metadata entries")):
            if count > MAX_ENTRIES:
                raise self.fault(f"{count} {description}, more than {MAX_ENTRIES}")
        spend(self.path, "parts", n_tensors + n_entries)
        metadata: dict[str, Any] = {}
        for _ in range(n_entries):
            self.add_entry(metadata)
        alignment = self.alignment(metadata)
        tensors, end = self.tensors(n_tensors, alignment)
        start = padded(self.position, alignment)
        self.check_size(start, tensors, end, alignment)
        placed = tuple(replace(t, offset=start + t.offset) for t in tensors)
        return GgufHeader(version, metadata, placed, alignment, start)

    def add_entry(self, metadata: dict[str, Any]) -> None:
        """Parse one metadata entry into `metadata`."""
        key = self.string(MAX_KEY_BYTES, "a metadata key")
        if not key or not key.isascii():
            raise self.fault(f"metadata key {key!r} is not ASCII")
        if key in metadata:
            raise self.fault(f"metadata key {key!r} is given twice")
        kind = self.number("<u4")
        if key == ALIGNMENT_KEY and kind != _UINT32:  # llama.cpp aborts on any other
            raise self.fault(f"{ALIGNMENT_KEY} has type {kind} instead of uint32")
        metadata[key] = self.value(kind, key)

    def value(self, kind: int, key: str) -> Any:
        """Parse a metadata value of GGUF type `kind`."""
        if kind == _STRING:
            return self.string(MAX_HEADER_BYTES, key)
        if kind == _ARRAY:
            return self.array(key)
        if kind not in _SCALARS:
            raise self.fault(f"metadata {key!r} has unknown type {kind}")
        value = self.number(_SCALARS[kind])
        return self.boolean(value, key) if kind == _BOOL else value

    def array(self, key: str) -> Any:
        """Parse an array: a list of strings, or a numpy array of numbers or booleans."""
        kind, count = self.number("<u4"), self.number("<u8")
        if kind == _STRING:
            self.strings += count
            if self.strings > MAX_STRINGS:
                raise self.fault(f"{self.strings} strings, more than {MAX_STRINGS}")
            spend(self.path, "values", self.strings)
            if count * 8 > self.end - self.position:
                raise self.too_long(f"metadata {key!r} with {count} strings")
            return [self.string(MAX_HEADER_BYTES, key) for _ in range(count)]
        if kind not in _SCALARS:
            raise self.fault(f"metadata {key!r} is an array of unknown type {kind}")
        item = np.dtype(_SCALARS[kind])
        values = np.frombuffer(self.take(count * item.itemsize, f"metadata {key!r}"), item)
        if kind == _BOOL:
            self.boolean(int(values.max(initial=0)), key)
            return values.astype(bool)
        return values

    def boolean(self, value: int, key: str) -> bool:
        """Convert the byte of a boolean. Raises InputError if it is neither 0 nor 1."""
        if value > 1:
            raise self.fault(f"metadata {key!r} holds {value} for a truth value")
        return bool(value)

    def alignment(self, metadata: Mapping[str, Any]) -> int:
        """Return the alignment of the data in bytes, a power of two."""
        value: int = metadata.get(ALIGNMENT_KEY, gguf.GGUF_DEFAULT_ALIGNMENT)
        if not 0 < value <= 1 << 20 or value & (value - 1):
            raise self.fault(f"general.alignment is {value!r}, not a power of two up to 2^20")
        return value

    def tensors(self, count: int, alignment: int) -> tuple[list[TensorInfo], int]:
        """Parse all tensor entries; offsets and the returned end count from the data's start."""
        tensors: dict[str, TensorInfo] = {}
        expected = 0
        for _ in range(count):
            tensor = self.tensor()
            if tensor.name in tensors:
                raise self.fault(f"tensor {tensor.name!r} is given twice")
            if tensor.offset != expected:  # so that none overlaps another and there are no gaps
                raise self.fault(
                    f"tensor {tensor.name!r} is at offset {tensor.offset} instead of {expected}"
                )
            tensors[tensor.name] = tensor
            expected = padded(expected + tensor.nbytes, alignment)
        last = list(tensors.values())[-1:]
        return list(tensors.values()), sum(t.offset + t.nbytes for t in last)

    def tensor(self) -> TensorInfo:
        """Parse one tensor entry; its offset counts from the start of the data."""
        name = self.string(MAX_NAME_BYTES, "a tensor name")
        dimensions = self.number("<u4")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self.fault(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self.number("<u8") for _ in range(dimensions))[::-1]
        if not 0 < math.prod(shape) < MAX_ELEMENTS:
            raise self.fault(f"tensor {name!r} has shape {list(shape)}")
        number = self.number("<u4")
        if number not in _SIZES:
            raise self.fault(f"tensor {name!r} has unknown type {number}")
        block, nbytes = _SIZES[number]
        if shape[-1] % block:
            raise self.fault(
                f"tensor {name!r} has rows of {shape[-1]}, not a multiple of its type's {block}"
            )
        kind = gguf.GGMLQuantizationType(number).name
        size = math.prod(shape) // block * nbytes
        return TensorInfo(name, shape, kind, self.number("<u8"), size, self.path)

    def check_size(
        self, start: int, tensors: list[TensorInfo], length: int, alignment: int
    ) -> None:
        """Check that the file ends after the last tensor, with or without its padding.

        The data begins at byte `start` and is `length` bytes long.
        """
        if not tensors and self.size == start:  # the header's own padding, and nothing behind it
            return
        if not tensors:
            start = self.position
        end = start + length
        padded_end = start + padded(length, alignment)
        if self.size < end:
            last = next((t for t in tensors if start + t.offset + t.nbytes > self.size), None)
            position = f" in tensor {last.name!r}" if last else ""
            raise self.fault(f"it ends{position} at byte {self.size} of {end}, so it is truncated")
        if self.size > padded_end:
            raise self.fault(f"{self.size - padded_end} bytes follow the last tensor")

    def take(self, count: int, description: str) -> bytes:
        """Read `count` bytes. Raises InputError, which names `description`, at the end."""
        if count > self.end - self.position:
            raise self.too_long(description)
        data = self.file.read(count)
        if len(data) != count:  # truncated after its size was read
            raise self.fault(f"it ends inside {description}")
        self.position += count
        return data

    def too_long(self, description: str) -> InputError:
        """Create the error for a part that reaches beyond the file or the longest header."""
        if self.size <= MAX_HEADER_BYTES:
            return self.fault(f"it ends inside {description}")
        return self.fault(
            f"{description} goes beyond the {MAX_HEADER_BYTES >> 20} MiB a header may have"
        )

    def number(self, dtype: str) -> Any:
        """Read one number of a numpy type such as "<u4"."""
        scalar = _STRUCTS[dtype]
        return scalar.unpack(self.take(scalar.size, "the header"))[0]

    def string(self, max_bytes: int, description: str) -> str:
        """Read a string of at most `max_bytes` bytes of UTF-8."""
        count = _LENGTH.unpack(self.take(8, description))[0]
        if max_bytes < count <= self.end - self.position:
            raise self.fault(f"{description} is {count} bytes long")
        data = self.take(count, description)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self.fault(f"{description} is not UTF-8: {data[:40]!r}") from None


_LENGTH = struct.Struct("<Q")
_STRUCTS = {
    kind: struct.Struct("<" + np.dtype(kind).char.replace("l", "q").replace("L", "Q"))
    for kind in _SCALARS.values()
}
_SIZES = {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}


class HeaderWriter(gguf.GGUFWriter):
    """gguf's writer, which here writes the header into memory, because planning writes no files.

    An imatrix file has no architecture, so `architecture` may be None.
    """

    def __init__(self, architecture: str | None = None) -> None:
        self._has_architecture = architecture is not None
        super().__init__(None, architecture or "")

    def add_architecture(self) -> None:
        """Write general.architecture if there is one; gguf's constructor calls this."""
        if self._has_architecture:
            super().add_architecture()

    def open_output_file(self, path: Path | None = None) -> None:
        """Open a buffer instead of a file; gguf's `write_header_to_file` calls this."""
        self._buffer = io.BytesIO()
        self.fout = [self._buffer]  # type: ignore[list-item]  # declared as files on a disk
        self.state = WriterState.EMPTY

    def add_values(self, key: str, values: Sequence[str] | Sequence[int]) -> None:
        """Add an array of strings or of int32 numbers, which must not be empty.

        gguf's own add_array checks the type of every value, which is slow for a vocabulary.
        """
        kinds = gguf.GGUFValueType
        kind = kinds.STRING if isinstance(values[0], str) else kinds.INT32
        self.add_key_value(key, values, kinds.ARRAY, kind)

    def header(self) -> bytes:
        """Return the bytes of the header; the caller pads them before it writes the data."""
        self.write_header_to_file()
        self.write_kv_data_to_file()
        self.write_ti_data_to_file()
        return self._buffer.getvalue()


def padded(size: int, alignment: int = ALIGNMENT) -> int:
    """Round a number of bytes up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment
