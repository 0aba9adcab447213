"""An importance matrix: how large the inputs of each matrix are, so what an error there costs.

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
import torch

from cgconvert.errors import InputError, OutputError, first_few
from cgconvert.formats.gguf.header import (
    ALIGNMENT,
    GgufHeader,
    HeaderWriter,
    TensorInfo,
    read_header,
)
from cgconvert.io.staging import Staging
from cgconvert.model.decoder import Decoder
from cgconvert.model.tensor_names import GGUF

__all__ = [
    "MATRICES",
    "Imatrix",
    "InputStatistics",
    "encoded",
    "read_imatrix",
    "write_imatrix",
]

MATRICES = ("q", "k", "v", "o", "fc_in", "fc_out")
"""The matrices of a layer. Head and embedding may be missing: llama-imatrix leaves them out."""

DAMPING = 1.0
"""How many times the mean is added to every column, so that an error in a column that the text
happened not to use still counts a little."""

NAMED = 3
"""How many matrices an error names."""


@dataclass(frozen=True)
class InputStatistics:
    """The inputs of one matrix: `squares`, float32 [columns], are sums over `count` positions.

    Old files count batches instead of positions; the ratio of two columns is the same.
    """

    squares: torch.Tensor
    count: int


@dataclass(frozen=True)
class Imatrix:
    """`inputs` by the matrix's name in GGUF, from `chunks` pieces of text of `chunk_size` tokens.

    `datasets` name the texts. `file` is the name of the file, without its folder, and `sha256` that
    of its bytes; of one that was just collected, of the bytes that writing it gives.
    """

    inputs: Mapping[str, InputStatistics]
    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int
    file: str = ""
    sha256: str = ""

    def importance(self, name: str) -> torch.Tensor | None:
        """How much a squared error counts in each column, float32 [columns] of mean 1.

        None for a matrix that the file does not have, and for one whose inputs are all zero.
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

    def check(self, decoder: Decoder, where: str) -> None:
        """Check that it is of a model of this geometry, and whole; `where` is named in errors.

        An imatrix of another model with the same widths cannot be recognised. Raises InputError.
        """
        needed, optional = _columns(decoder)
        columns = needed | optional
        for name, inputs in self.inputs.items():
            length = len(inputs.squares)
            if name in columns and length != columns[name]:
                raise InputError(
                    f"{where}: is another model's imatrix: {name} has {length} values, the model's "
                    f"has {columns[name]} columns; collect one from this model"
                )
        unknown = sorted(self.inputs.keys() - columns.keys())
        if unknown:
            raise InputError(
                f"{where}: is another model's imatrix: the model has no {_list(unknown)}; collect "
                "one from this model"
            )
        missing = [name for name in needed if name not in self.inputs]
        if missing:
            raise InputError(
                f"{where}: has none of {len(missing)} of the model's {len(needed)} matrices: "
                f"{_list(missing)}; collect one from the whole model"
            )


def _columns(decoder: Decoder) -> tuple[dict[str, int], dict[str, int]]:
    """Columns of the matrices that an imatrix has, and of those that it may have."""
    needed = {
        GGUF.layer[part].format(i=i): getattr(layer, part).shape[1]
        for i, layer in enumerate(decoder.layers)
        for part in MATRICES
    }
    optional = {GGUF.model[part]: getattr(decoder, part).shape[1] for part in ("wte", "head")}
    return needed, optional


def _list(names: list[str]) -> str:
    return first_few(names, NAMED, separator=", ", conjunction=" and ")


MOST_BYTES = 1 << 30
"""The largest file that is read: CodeGen-16B's has 8 MB."""

MOST_ENTRIES = 1 << 16
MOST_NAME_BYTES = 63  # GGML_MAX_NAME without the 0 at the end
MOST_TEXT_BYTES = 1 << 12
"""The longest name of a text: llama.cpp writes a path."""

TYPE = "imatrix"
DATASETS, CHUNKS, CHUNK_SIZE = (
    f"imatrix.{key}" for key in ("datasets", "chunk_count", "chunk_size")
)
SQUARES, COUNTS = ".in_sum2", ".counts"


def read_imatrix(path: Path, decoder: Decoder) -> Imatrix:
    """The importance matrix in a file, which has to be one of `decoder`'s geometry.

    Raises InputError where the file is broken, of another model, lacks a matrix, or holds a number
    that no sum of squares can be.
    """
    try:
        if not path.is_file():  # to open a FIFO waits for a writer
            raise InputError(f"{path}: cannot be read as an imatrix: not a regular file")
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path}: is no imatrix: it has more than {MOST_BYTES >> 20} MiB")
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read as an imatrix: {error.strerror}") from error
    if not raw:
        raise InputError(f"{path}: is empty; an imatrix is what llama-imatrix writes")
    imatrix = _from_gguf(path, raw) if raw[:4] == b"GGUF" else _Legacy(path, raw).imatrix()
    imatrix.check(decoder, str(path))
    return replace(imatrix, file=path.name, sha256=hashlib.sha256(raw).hexdigest())


def write_imatrix(path: Path, imatrix: Imatrix, *, force: bool = False) -> Imatrix:
    """Write the GGUF that llama-quantize reads; returns the imatrix as that file.

    The same imatrix gives the same bytes. Raises UsageError where there is a file and not `force`,
    OutputError where writing fails.
    """
    data = encoded(imatrix)
    with Staging(path, force=force) as staging:
        try:
            (staging.content / path.name).write_bytes(data)
            staging.commit_files()
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
    return replace(imatrix, file=path.name, sha256=hashlib.sha256(data).hexdigest())


def encoded(imatrix: Imatrix) -> bytes:
    """The bytes of the GGUF."""
    writer = HeaderWriter()
    writer.add_type(TYPE)
    writer.add_array(DATASETS, list(imatrix.datasets) or [""])  # of no length it has no type
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
    header = read_header(path)
    kind = header.metadata.get("general.type")
    if kind != TYPE:
        raise InputError(f"{path}: is a GGUF of type {kind!r}, not an imatrix")
    datasets = header.metadata.get(DATASETS)
    if not isinstance(datasets, list):
        raise InputError(f"{path}: {DATASETS} is {_shown(datasets)}, not a list of names")
    chunks, size = _whole(path, header, CHUNKS), _whole(path, header, CHUNK_SIZE)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    inputs = {}
    for name in tensors:
        stem = name.removesuffix(SQUARES).removesuffix(COUNTS)
        if stem == name or stem in inputs:  # other statistics of some versions are not used
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
        inputs[stem] = _inputs(path, stem, values, float(counts[0]))
    if not inputs:
        raise InputError(f"{path}: is an imatrix without a matrix; collect it again")
    return Imatrix(inputs, tuple(datasets), chunks, size)


def _values(path: Path, raw: bytes, tensor: TensorInfo) -> np.ndarray:
    if tensor.type != "F32":
        raise InputError(f"{path}: {tensor.name} is {tensor.type}, not F32")
    return np.frombuffer(raw, "<f4", math.prod(tensor.shape), tensor.offset)


def _whole(path: Path, header: GgufHeader, key: str) -> int:
    """The number under a key that llama-quantize demands."""
    value = header.metadata.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise InputError(f"{path}: {key} is {_shown(value)}, not a whole number from 0 up")
    return value


def _shown(value: object) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"


def _inputs(path: Path, name: str, values: np.ndarray, count: float) -> InputStatistics:
    """Raises InputError for a number that no sum of squares, or no count, can be."""
    for broken, what in (
        (~np.isfinite(values), "NaN or infinite"),
        (values < 0, "negative, which no sum of squares is"),
    ):
        if broken.any():
            raise InputError(
                f"{path}: {int(broken.sum())} of {name}'s {len(values)} values are {what}; collect "
                "the imatrix again"
            )
    if not 1 <= count < 1 << 62:  # nor is NaN
        raise InputError(
            f"{path}: {name} has a count of {count:g}, so nothing was collected for it; collect "
            "the imatrix again from more text"
        )
    return InputStatistics(torch.from_numpy(values.astype(np.float32)), round(count))


class _Legacy:
    """The .dat format, every length checked against the bytes that are left."""

    def __init__(self, path: Path, raw: bytes) -> None:
        self.path, self.raw, self.position = path, raw, 0

    def fault(self, text: str) -> InputError:
        return InputError(f"{self.path}: is no imatrix, neither GGUF nor .dat: {text}")

    def imatrix(self) -> Imatrix:
        entries = self.number("the number of entries")
        if not 1 <= entries <= MOST_ENTRIES:
            raise self.fault(f"it would have {entries} entries")
        inputs: dict[str, InputStatistics] = {}
        for name, entry in self.entries(entries):
            if name in inputs:
                raise self.fault(f"{name} is there twice")
            inputs[name] = entry
        chunks, datasets = self.rest()
        return Imatrix(inputs, datasets, chunks, 0)

    def entries(self, count: int) -> Iterator[tuple[str, InputStatistics]]:
        for index in range(count):
            name = self.string(MOST_NAME_BYTES, f"the name of entry {index}")
            if not name:
                raise self.fault(f"the name of entry {index} is empty")
            calls = self.number(f"the count of {name}")
            length = self.number(f"the number of {name}'s values")
            if length < 1:
                raise self.fault(f"{name} would have {length} values")
            data = self.take(4 * length, f"{name}'s {length} values")
            yield name, _inputs(self.path, name, np.frombuffer(data, "<f4"), calls)

    def rest(self) -> tuple[int, tuple[str, ...]]:
        """The number of chunks and the text's name; the oldest files end before."""
        if self.position == len(self.raw):
            return 0, ()
        chunks = self.number("the number of chunks")
        if chunks < 0:
            raise self.fault(f"it would have {chunks} chunks")
        text = self.string(MOST_TEXT_BYTES, "the name of its text")
        if self.position != len(self.raw):
            raise self.fault(f"{len(self.raw) - self.position} bytes follow its end")
        return chunks, (text,) if text else ()

    def number(self, what: str) -> int:
        return int(struct.unpack("<i", self.take(4, what))[0])

    def string(self, most: int, what: str) -> str:
        length = self.number(f"the length of {what}")
        if not 0 <= length <= most:
            raise self.fault(f"{what} would be {length} bytes long")
        try:
            text = self.take(length, what).decode()
        except UnicodeDecodeError:
            raise self.fault(f"{what} is not UTF-8") from None
        if not text.isprintable():
            raise self.fault(f"{what} is not a name")
        return text

    def take(self, count: int, what: str) -> bytes:
        if count > len(self.raw) - self.position:
            raise self.fault(f"it ends inside {what}")
        data = self.raw[self.position : self.position + count]
        self.position += count
        return data
