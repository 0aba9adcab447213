"""An importance matrix: how large the inputs of each matrix are, and so what errors cost.

llama.cpp's imatrix holds, for each matrix, the sum of each input's square over the positions of a
text (the diagonal of X^T X) and the number of positions. llama-imatrix collects all matrices of a
CodeGen except the embedding, which is not multiplied, and the head, which it collects only with
--process-output.

Formats: tools/imatrix/imatrix.cpp of llama.cpp, save_imatrix and save_imatrix_legacy. Both are
read and the current one is written: a GGUF with F32 tensors NAME.in_sum2 and NAME.counts. The older
one, .dat, is little-endian: int32 number of entries; for each entry int32 length of the name, name,
int32 count, int32 number of values, float32 values; then, optionally, int32 number of chunks,
int32 length of the text's name, name.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cgconvert.errors import InputError, OutputError, first_few
from cgconvert.formats.gguf.header import (
    ALIGNMENT,
    GgufHeader,
    HeaderWriter,
    TensorInfo,
    read_header,
)
from cgconvert.io.commit import Nothing
from cgconvert.io.followed_links import note_user_path
from cgconvert.io.reading import read_bytes, spend
from cgconvert.io.staging import Staging
from cgconvert.io.stand_ins import refuse_pointer
from cgconvert.lazy import torch
from cgconvert.model.decoder import Decoder
from cgconvert.model.tensor_names import GGUF

__all__ = [
    "MATRICES",
    "MAX_BYTES",
    "Imatrix",
    "InputStatistics",
    "encoded",
    "read_imatrix",
    "write_imatrix",
]

MATRICES = ("q", "k", "v", "o", "fc_in", "fc_out")
"""The matrices of a layer that an imatrix must contain; head and embedding may be missing."""

DAMPING = 1.0
"""The multiple of the mean that is added to every column, so that an error in a column that the
text does not use still counts a little."""

MAX_NAMED = 3
"""An error names at most this many matrices."""


@dataclass(frozen=True)
class InputStatistics:
    """How large the inputs of one matrix are.

    `squares`, float32 [columns], has the sum of each input's square over `count` positions. Old
    files count batches instead of positions; this does not matter, because importance depends only
    on the ratios of columns.
    """

    squares: torch.Tensor
    count: int


@dataclass(frozen=True)
class Imatrix:
    """Input statistics by the matrix's name in GGUF.

    They were collected on `chunks` pieces of text of `chunk_size` tokens (0: not recorded).
    `datasets` names the texts. `file` is the name of the file without its folder. `sha256` is the
    hash of its bytes, or of the bytes that `encoded` gives if the statistics were just collected.
    """

    inputs: Mapping[str, InputStatistics]
    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int
    file: str = ""
    sha256: str = ""

    def importance(self, name: str) -> torch.Tensor | None:
        """Return the weight of a squared error in each column, float32 [columns] with mean 1.

        Returns None if the imatrix does not have the matrix, or if its inputs are all zero.
        """
        if name not in self.inputs:
            return None
        squares = self.inputs[name].squares.double()
        mean = squares.mean()
        if not mean:
            return None
        return ((squares / mean + DAMPING) / (1 + DAMPING)).float()

    @property
    def manifest_entry(self) -> dict[str, str]:
        """The entry of a manifest: file name and SHA-256."""
        return {"file": self.file, "sha256": self.sha256}

    def check(self, decoder: Decoder, label: str) -> None:
        """Check that the imatrix has every matrix of the decoder, with the right number of columns.

        An imatrix of another model with the same sizes cannot be detected. Raises InputError, which
        begins with `label`.
        """
        required, optional = _columns(decoder)
        columns = required | optional
        for name, inputs in self.inputs.items():
            length = len(inputs.squares)
            if name in columns and length != columns[name]:
                raise InputError(
                    f"{label}: is another model's imatrix: {name} has {length} values, the model's "
                    f"has {columns[name]} columns; collect one from this model"
                )
        unknown = sorted(self.inputs.keys() - columns.keys())
        if unknown:
            raise InputError(
                f"{label}: is another model's imatrix: the model has no {_list(unknown)}; collect "
                "one from this model"
            )
        missing = [name for name in required if name not in self.inputs]
        if missing:
            raise InputError(
                f"{label}: has none of {len(missing)} of the model's {len(required)} matrices: "
                f"{_list(missing)}; collect one from the whole model"
            )


def _columns(decoder: Decoder) -> tuple[dict[str, int], dict[str, int]]:
    """Return the number of columns of each matrix: the required ones, and the optional ones."""
    required = {
        GGUF.layer[part].format(i=i): getattr(layer, part).shape[1]
        for i, layer in enumerate(decoder.layers)
        for part in MATRICES
    }
    optional = {GGUF.model[part]: getattr(decoder, part).shape[1] for part in ("wte", "head")}
    return required, optional


def _list(names: list[str]) -> str:
    """Join the first few names."""
    return first_few(names, MAX_NAMED, separator=", ", conjunction=" and ")


MAX_BYTES = 128 << 20
"""The largest file that is read: CodeGen-16B's has 8 MB."""

MAX_ENTRIES = 1 << 16
MAX_NAME_BYTES = 63  # GGML_MAX_NAME without the 0 at the end
MAX_TEXT_NAME_BYTES = 1 << 12
"""The longest name of a text: llama.cpp writes a path."""

TYPE = "imatrix"
DATASETS, CHUNKS, CHUNK_SIZE = (
    f"imatrix.{key}" for key in ("datasets", "chunk_count", "chunk_size")
)
SQUARES, COUNTS = ".in_sum2", ".counts"


def read_imatrix(path: Path, decoder: Decoder) -> Imatrix:
    """Read an importance matrix, in either format, for a model of `decoder`'s geometry.

    Raises InputError if the file is broken, belongs to another model, lacks a matrix, or has a
    value that cannot be a sum of squares.
    """
    note_user_path(path)
    raw = read_bytes(path, MAX_BYTES, " as an imatrix", kind="an imatrix")
    refuse_pointer(path, raw)
    if not raw:
        raise InputError(f"{path}: is empty; an imatrix is what llama-imatrix writes")
    imatrix = _from_gguf(path, raw) if raw[:4] == b"GGUF" else _LegacyParser(path, raw).imatrix()
    imatrix.check(decoder, str(path))
    return replace(imatrix, file=path.name, sha256=hashlib.sha256(raw).hexdigest())


def write_imatrix(path: Path, imatrix: Imatrix) -> Imatrix:
    """Write the GGUF that llama-quantize reads; returns the imatrix with the file's name and hash.

    The same imatrix gives the same bytes. Raises UsageError if the file exists, OutputError if
    writing fails.
    """
    data = encoded(imatrix)
    with Staging(path, Nothing()) as staging:
        try:
            (staging.content / path.name).write_bytes(data)
            staging.commit_files()
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
    return replace(imatrix, file=path.name, sha256=hashlib.sha256(data).hexdigest())


def encoded(imatrix: Imatrix) -> bytes:
    """Return the bytes of an imatrix as GGUF, the current format."""
    writer = HeaderWriter()
    writer.add_type(TYPE)
    writer.add_array(DATASETS, list(imatrix.datasets) or [""])  # gguf cannot type an empty array
    writer.add_uint32(CHUNKS, imatrix.chunks)
    writer.add_uint32(CHUNK_SIZE, imatrix.chunk_size)
    arrays: list[np.ndarray] = []
    for name, inputs in sorted(imatrix.inputs.items()):
        counts = np.array([inputs.count], np.float32)
        for suffix, array in ((SQUARES, inputs.squares.numpy()), (COUNTS, counts)):
            writer.add_tensor_info(name + suffix, array.shape, array.dtype, array.nbytes)
            arrays.append(array)
    parts = [writer.header(), *(array.astype("<f4").tobytes() for array in arrays)]
    return b"".join(part + bytes(-len(part) % ALIGNMENT) for part in parts)


def _from_gguf(path: Path, raw: bytes) -> Imatrix:
    """Read the current format. Raises InputError."""
    header = read_header(path)
    kind = header.metadata.get("general.type")
    if kind != TYPE:
        raise InputError(f"{path}: is a GGUF of type {kind!r}, not an imatrix")
    datasets = header.metadata.get(DATASETS)
    if not isinstance(datasets, list):
        raise InputError(f"{path}: {DATASETS} is {_type_name(datasets)}, not a list of names")
    chunks, size = _integer(path, header, CHUNKS), _integer(path, header, CHUNK_SIZE)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    inputs = {}
    for name in tensors:
        stem = name.removesuffix(SQUARES).removesuffix(COUNTS)
        if (
            stem == name or stem in inputs
        ):  # some versions write other statistics, which are not used
            continue
        for needed in (stem + SQUARES, stem + COUNTS):
            if needed not in tensors:
                raise InputError(f"{path}: has {name} and no {needed}; fetch or collect it again")
        values, counts = (_values(path, raw, tensors[stem + s]) for s in (SQUARES, COUNTS))
        if len(counts) != 1:
            raise InputError(
                f"{path}: is another model's imatrix: {stem} has {len(counts)} experts; collect "
                "one from this model"
            )
        inputs[stem] = _input_statistics(path, stem, values, float(counts[0]))
    if not inputs:
        raise InputError(f"{path}: is an imatrix without a matrix; collect it again")
    return Imatrix(inputs, tuple(datasets), chunks, size)


def _values(path: Path, raw: bytes, tensor: TensorInfo) -> np.ndarray:
    """Return the float32 values of a tensor."""
    if tensor.type != "F32":
        raise InputError(f"{path}: {tensor.name} is {tensor.type}, not F32")
    return np.frombuffer(raw, "<f4", math.prod(tensor.shape), tensor.offset)


def _integer(path: Path, header: GgufHeader, key: str) -> int:
    """Return the number under a key that llama-quantize requires."""
    value = header.metadata.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise InputError(f"{path}: {key} is {_type_name(value)}, not a whole number from 0 up")
    return value


def _type_name(value: object) -> str:
    """Describe the type of a metadata value in an error."""
    return "missing" if value is None else f"a {type(value).__name__}"


def _input_statistics(path: Path, name: str, values: np.ndarray, count: float) -> InputStatistics:
    """Check the values and the count of one matrix. Raises InputError if one is impossible."""
    for is_wrong, description in (
        (~np.isfinite(values), "NaN or infinite"),
        (values < 0, "negative, which no sum of squares is"),
    ):
        if is_wrong.any():
            raise InputError(
                f"{path}: {int(is_wrong.sum())} of {name}'s {len(values)} values are "
                f"{description}; collect the imatrix again"
            )
    if not 1 <= count < 1 << 62:  # nor is NaN
        raise InputError(
            f"{path}: {name} has a count of {count:g}, so nothing was collected for it; collect "
            "the imatrix again from more text"
        )
    return InputStatistics(torch.from_numpy(values.astype(np.float32)), round(count))


class _LegacyParser:
    """Reads the .dat format; every length is checked against the bytes that remain."""

    def __init__(self, path: Path, raw: bytes) -> None:
        self.path, self.raw, self.position = path, raw, 0

    def fault(self, text: str) -> InputError:
        """Create the error that names the file."""
        return InputError(f"{self.path}: is no imatrix, neither GGUF nor .dat: {text}")

    def imatrix(self) -> Imatrix:
        """Parse the whole file. Raises InputError."""
        entry_count = self.number("the number of entries")
        if not 1 <= entry_count <= MAX_ENTRIES:  # of another kind of file, the number is its text
            bound = "no entries" if entry_count < 1 else f"more than {MAX_ENTRIES} entries"
            raise self.fault(f"it would have {bound}")
        spend(self.path, "parts", entry_count)
        inputs: dict[str, InputStatistics] = {}
        for name, entry in self.entries(entry_count):
            if name in inputs:
                raise self.fault(f"{name} is there twice")
            inputs[name] = entry
        chunks, datasets = self.trailer()
        return Imatrix(inputs, datasets, chunks, chunk_size=0)  # the format does not record it

    def entries(self, count: int) -> Iterator[tuple[str, InputStatistics]]:
        """Parse `count` entries; yields the name and statistics of each matrix."""
        for index in range(count):
            name = self.string(MAX_NAME_BYTES, f"the name of entry {index}")
            if not name:
                raise self.fault(f"the name of entry {index} is empty")
            calls = self.number(f"the count of {name}")
            length = self.number(f"the number of {name}'s values")
            if length < 1:
                raise self.fault(f"{name} would have {length} values")
            data = self.take(4 * length, f"{name}'s {length} values")
            yield name, _input_statistics(self.path, name, np.frombuffer(data, "<f4"), calls)

    def trailer(self) -> tuple[int, tuple[str, ...]]:
        """Parse the number of chunks and the text's name, which the oldest files do not have."""
        if self.position == len(self.raw):
            return 0, ()
        chunks = self.number("the number of chunks")
        if chunks < 0:
            raise self.fault(f"it would have {chunks} chunks")
        text = self.string(MAX_TEXT_NAME_BYTES, "the name of its text")
        if self.position != len(self.raw):
            raise self.fault(f"{len(self.raw) - self.position} bytes follow its end")
        return chunks, (text,) if text else ()

    def number(self, description: str) -> int:
        """Read an int32; errors name `description`."""
        return int(struct.unpack("<i", self.take(4, description))[0])

    def string(self, max_bytes: int, description: str) -> str:
        """Read a printable string of at most `max_bytes` bytes of UTF-8."""
        length = self.number(f"the length of {description}")
        if not 0 <= length <= max_bytes:
            raise self.fault(f"{description} would be {length} bytes long")
        try:
            text = self.take(length, description).decode()
        except UnicodeDecodeError:
            raise self.fault(f"{description} is not UTF-8") from None
        if not text.isprintable():
            raise self.fault(f"{description} is not a name")
        return text

    def take(self, count: int, description: str) -> bytes:
        """Read `count` bytes. Raises InputError if fewer are left."""
        if count > len(self.raw) - self.position:
            raise self.fault(f"it ends inside {description}")
        data = self.raw[self.position : self.position + count]
        self.position += count
        return data
