"""The limit of a calibrated GGUF file, and the sizes and the type name that follow from it.

Everything here is known before anything is measured.
"""

from __future__ import annotations

import contextlib
import fnmatch
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.ggml import ENCODINGS
from cgconvert.errors import InputError, UsageError
from cgconvert.formats.gguf import writer
from cgconvert.formats.gguf.type_names import bits_name, calibrated_name, loss_name
from cgconvert.formats.gguf.types import TYPES, data_size
from cgconvert.io.progress import format_bytes
from cgconvert.model.decoder import Checkpoint, Decoder
from cgconvert.model.matrix_id import MatrixId
from cgconvert.model.tensor_names import GGUF

__all__ = [
    "Budget",
    "adjustable_vectors",
    "candidate_types",
    "check_budget",
    "codec_of",
    "in_bytes",
    "largest_file",
    "matching_matrices",
    "matrix_bytes",
    "overhead",
    "standard_sizes",
    "type_name",
    "types_of_budget",
]

STANDARD_TYPES = ("Q3_K", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0")
"""The file types that `standard_sizes` lists."""

LARGEST_TYPE = "Q8_0"
"""The file type that is as large as any choice of types can be."""

LONGEST_NAME = "kl1.23457e-05"
"""A name of a type, as long as any of a calibrated file; see type_names.py."""

CANDIDATES = ("Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
"""The types that calibration chooses from; other types of the same size lose more."""

SMALL_BLOCK_CANDIDATES = ("Q4_0", "Q4_1", "Q8_0")
"""More types to choose from if rows of a matrix are not whole blocks of 256."""


@dataclass(frozen=True)
class Budget:
    """The limit that a GGUF file has to keep. Exactly one of the first five attributes is set.

    Attributes:
        like: A file type. The file may have as many bytes as an uncalibrated file of this type.
        nbytes: The largest number of bytes of the file.
        bpw: The largest number of bits per weight, as the mean over all matrices.
        kl: The largest mean KL divergence from the source, in nats per token.
        mix: A file type that gives each matrix its type, so that no types are chosen.
        fixed: Pairs (pattern, type). A matrix whose name in GGUF matches a pattern gets its type;
            the first matching pattern decides.
    """

    like: str | None = None
    nbytes: int | None = None
    bpw: float | None = None
    kl: float | None = None
    mix: str | None = None
    fixed: Sequence[tuple[str, str]] = field(default_factory=tuple)


def standard_sizes(checkpoint: Checkpoint) -> dict[str, int]:
    """Return the bytes of an uncalibrated file in each standard type, smallest first.

    A type is left out if rows of a matrix are not whole blocks of it.
    """
    header = writer.header_size(checkpoint)
    return {type_: header + n for type_, n in _standard_data_sizes(checkpoint.decoder).items()}


def _standard_data_sizes(decoder: Decoder) -> dict[str, int]:
    """Return the bytes of all tensors in each standard type, smallest first."""
    sizes = {}
    for type_ in STANDARD_TYPES:
        with contextlib.suppress(InputError):
            sizes[type_] = data_size(decoder, type_)
    return dict(sorted(sizes.items(), key=lambda entry: entry[1]))


def in_bytes(budget: Budget, source: Checkpoint) -> Budget:
    """Return the budget with `like` replaced by the `nbytes` that it stands for."""
    if budget.like is None:
        return budget
    nbytes = writer.header_size(source) + data_size(source.decoder, budget.like)
    return replace(budget, like=None, nbytes=nbytes)


def overhead(source: Checkpoint) -> int:
    """Return the largest number of bytes of a calibrated file that do not belong to matrices.

    They are the header, all vectors, and the padding after each tensor. The padding after a matrix
    depends on its type and is counted as ALIGNMENT bytes.
    """
    decoder = source.decoder
    matrices = MatrixId.all(decoder.geometry.n_layer)
    matrix_bytes = 2 * weight_count(decoder, matrices)  # in F16
    padding = writer.ALIGNMENT * len(matrices)
    return largest_header(source) + data_size(decoder, "F16") - matrix_bytes + padding


def largest_header(source: Checkpoint) -> int:
    """Return the largest size of a calibrated file's header, in bytes.

    It lists the changed vectors.
    """
    return writer.header_size(source, adjustable_vectors(source.decoder), LONGEST_NAME)


def largest_file(source: Checkpoint, budget: Budget) -> int:
    """Return the largest size in bytes of a file that keeps a budget.

    The budget must be one that `in_bytes` returned, without `like`.
    """
    if budget.nbytes is not None:
        return budget.nbytes
    return largest_header(source) + data_size(source.decoder, budget.mix or LARGEST_TYPE)


def check_budget(source: Checkpoint, budget: Budget) -> None:
    """Check, before anything is measured, that a file can keep a budget.

    The budget must be one that `in_bytes` returned, without `like`.

    Raises UsageError if even the smallest types exceed the budget or a pattern matches no matrix,
    InputError if the rows of a matrix are not whole blocks of any type.
    """
    decoder = source.decoder
    if budget.mix is not None:
        types_of_mix(decoder, budget.mix)
    least, _ = _least_and_most_bytes(decoder, budget.fixed)
    if budget.nbytes is not None and least + overhead(source) > budget.nbytes:
        raise UsageError(
            f"a file of {format_bytes(budget.nbytes)} is too small: the least is "
            f"{format_bytes(least + overhead(source), round_up=True)}"
        )
    weights = weight_count(decoder, MatrixId.all(decoder.geometry.n_layer))
    if budget.bpw is not None and least > int(budget.bpw * weights / 8):
        rate = math.ceil(800 * least / weights) / 100
        raise UsageError(f"{budget.bpw:g} bits a weight are too few: the least is {rate:g}")


def type_name(source: Checkpoint, budget: Budget) -> str:
    """Return the type name of a file that is calibrated to a budget.

    The budget must be one that `in_bytes` returned, without `like`.
    """
    decoder = source.decoder
    weights = weight_count(decoder, MatrixId.all(decoder.geometry.n_layer))
    if budget.kl is not None:
        return loss_name(budget.kl)
    if budget.mix is not None:
        types = types_of_budget(decoder, budget)
        if types == types_of_mix(decoder, budget.mix):
            return calibrated_name(budget.mix)
        shapes = {name: name.tensor(decoder).shape for name in types}
        nbytes = sum(codec.stored_bytes(shapes[name]) for name, codec in types.items())
        return bits_name(nbytes, weights)
    _, most = _least_and_most_bytes(decoder, budget.fixed)
    limit = matrix_bytes(decoder, budget, overhead(source) if budget.nbytes is not None else 0)
    return bits_name(min(limit, most), weights)


def matrix_bytes(decoder: Decoder, budget: Budget, overhead: int) -> int:
    """Return the bytes that all matrices may take under a budget of bytes or of bits per weight."""
    if budget.nbytes is not None:
        return budget.nbytes - overhead
    weights = weight_count(decoder, MatrixId.all(decoder.geometry.n_layer))
    return int((budget.bpw or 0) * weights / 8)


def _least_and_most_bytes(decoder: Decoder, fixed: Sequence[tuple[str, str]]) -> tuple[int, int]:
    """Return the bytes of all matrices in the smallest and in the largest types to choose from."""
    matrices = MatrixId.all(decoder.geometry.n_layer)
    candidates = [codec_of(name) for name in candidate_types(decoder, ())]
    fixed_types: dict[MatrixId, str] = {}
    for pattern, type_ in reversed(fixed):
        fixed_types |= dict.fromkeys(matching_matrices(matrices, pattern), type_)
    least = most = 0
    for name in matrices:
        shape = name.tensor(decoder).shape
        codecs = [codec_of(fixed_types[name])] if name in fixed_types else candidates
        fitting = [codec for codec in codecs if shape[1] % codec.block_size == 0]
        sizes = [codec.row_bytes(shape) * shape[0] for codec in fitting or codecs]
        least, most = least + min(sizes), most + max(sizes)
    return least, most


def adjustable_vectors(decoder: Decoder) -> tuple[str, ...]:
    """List the names in GGUF of the vectors that calibration can change."""
    layers = range(decoder.geometry.n_layer)
    biases = [GGUF.name(part, i) for i in layers for part in ("fc_in_bias", "fc_out_bias")]
    return (*biases, GGUF.name("head_bias"))


def codec_of(name: str) -> BlockCodec:
    """Return the block codec of a type; raises UsageError if there is none of this name."""
    encoding = ENCODINGS.get(name)
    if not isinstance(encoding, BlockCodec):
        known = ", ".join(n for n, e in ENCODINGS.items() if isinstance(e, BlockCodec))
        raise UsageError(f"type {name!r} is not one of {known}")
    return encoding


def candidate_types(decoder: Decoder, fixed: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """List the types to measure: those that calibration chooses from, and the fixed ones."""
    matrices = MatrixId.all(decoder.geometry.n_layer)
    columns = {name.tensor(decoder).shape[1] for name in matrices}
    needs_small_blocks = any(n % codec_of(CANDIDATES[0]).block_size for n in columns)
    small_types = SMALL_BLOCK_CANDIDATES if needs_small_blocks else ()
    fixed_types = (type_ for _, type_ in fixed)
    return tuple(dict.fromkeys((*CANDIDATES, *small_types, *fixed_types)))


def types_of_mix(decoder: Decoder, mix: str) -> dict[MatrixId, BlockCodec]:
    """Return the type of each quantized matrix in a file type.

    Raises InputError if the rows of a matrix are not whole blocks of its type.
    """
    types: dict[MatrixId, BlockCodec] = {}
    file_type, n_layer = TYPES[mix], decoder.geometry.n_layer
    for name in MatrixId.all(n_layer):
        position = () if name.layer is None else (name.layer, n_layer)
        encoding = file_type.encoding_of(name.part, *position)
        if isinstance(encoding, BlockCodec):
            encoding.row_bytes(name.tensor(decoder).shape)  # raises the InputError
            types[name] = encoding
    return types


def types_of_budget(decoder: Decoder, budget: Budget) -> dict[MatrixId, BlockCodec]:
    """Return the type of each quantized matrix under a budget whose `mix` is set."""
    types = types_of_mix(decoder, budget.mix or "")
    for pattern, type_ in reversed(budget.fixed):
        types |= dict.fromkeys(matching_matrices(types, pattern), codec_of(type_))
    return types


def matching_matrices(matrices: Iterable[MatrixId], pattern: str) -> list[MatrixId]:
    """List the matrices whose name in GGUF matches a pattern; raises UsageError if none does."""
    matching = [name for name in matrices if fnmatch.fnmatchcase(name.name(GGUF), pattern)]
    if not matching:
        raise UsageError(
            f"no matrix is called {pattern!r}; there is for example {GGUF.name('wte')}"
        )
    return matching


def weight_count(decoder: Decoder, matrices: Iterable[MatrixId]) -> int:
    """Count the weights of matrices."""
    return sum(math.prod(name.tensor(decoder).shape) for name in matrices)
