"""Quantize a model to GGUF with a calibration text: the budget, the choice of types and the plan.

A budget is a file size, a number of bits per weight or a loss. The type of each matrix is chosen so
that the loss of the model's output is least within the budget (sensitivity.py, allocation.py). Then
every matrix is fitted to its inputs (layerwise.py).
"""

from __future__ import annotations

import contextlib
import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from cgconvert.calibrate.allocation import Choice, choose_types, pareto_frontier
from cgconvert.calibrate.calibrated_plan import CalibratedPlan, CalibrationResult
from cgconvert.calibrate.calibration_set import CalibrationPreset, CalibrationSet
from cgconvert.calibrate.imatrix import collect
from cgconvert.calibrate.quantizer import Quantizer
from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.ggml import ENCODINGS
from cgconvert.errors import InputError, UsageError
from cgconvert.formats.gguf import writer
from cgconvert.formats.gguf.generation import generation_metadata
from cgconvert.formats.gguf.imatrix import encoded, write_imatrix
from cgconvert.formats.gguf.types import TYPES, data_size
from cgconvert.io.progress import Progress
from cgconvert.lazy import torch
from cgconvert.model.decoder import Checkpoint, Decoder
from cgconvert.model.device import CPU, deterministic
from cgconvert.model.matrix_id import MatrixId
from cgconvert.model.tensor_names import GGUF
from cgconvert.write.plan import Plan

__all__ = ["Budget", "CalibratedGGUF", "calibrate_gguf", "standard_sizes"]

STANDARD_TYPES = ("Q3_K", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0")
"""The file types that the header of a calibrated file can name; see CalibratedGGUF._nearest_type.
"""

LARGEST_TYPE = "Q8_0"
"""The file type of the largest file that chosen types can give."""

CANDIDATES = ("Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
"""The types that are chosen from under a budget; other types of the same size lose more."""

SMALL_BLOCK_CANDIDATES = ("Q4_0", "Q4_1", "Q8_0")
"""The types that are chosen from too, if rows of a matrix are not whole blocks of 256."""


@dataclass(frozen=True)
class Budget:
    """The limit that a GGUF file has to keep. Exactly one of the first five attributes is set.

    Attributes:
        like: A file type. The file may have as many bytes as an uncalibrated file of this type.
        nbytes: The largest number of bytes of the file.
        bpw: The largest number of bits per weight, as the mean over all matrices.
        kl: The largest mean KL divergence from the source, in nats per token.
        mix: A file type whose types are used, so that none are chosen.
        fixed: Pairs (pattern, type). A matrix whose name in GGUF matches a pattern gets its type;
            the first matching pattern decides.
    """

    like: str | None = None
    nbytes: int | None = None
    bpw: float | None = None
    kl: float | None = None
    mix: str | None = None
    fixed: Sequence[tuple[str, str]] = field(default_factory=tuple)


@dataclass(frozen=True)
class CalibratedGGUF(CalibratedPlan):
    """The plan of a GGUF file whose matrices are fitted to a text.

    Attributes:
        budget: The limit that the file has to keep.
        save_imatrix: The path to which the importance matrix of the text is written; None if it is
            not written.
        format: The name of the artefact's format.
        is_folder: See LazyPlan.
    """

    computed_options: ClassVar[tuple[str, ...]] = ("type", *CalibratedPlan.computed_options)

    budget: Budget
    save_imatrix: Path | None = None
    format: str = "gguf"
    is_folder: bool = False

    def __post_init__(self) -> None:
        """Check the budget before anything is measured; raises UsageError if it cannot be met."""
        check_budget(self.source.decoder, self._budget_in_bytes, self._overhead)

    @cached_property
    def limit(self) -> int:
        if self.budget.nbytes is not None:
            return self.budget.nbytes
        if self.budget.like is not None:
            header = writer.header_size(self.source)
            return header + data_size(self.source.decoder, self.budget.like)
        data = data_size(self.source.decoder, self.budget.mix or LARGEST_TYPE)
        return self._header_size + data

    @property
    def notes(self) -> tuple[str, ...]:
        return generation_metadata(self.source).notes

    @property
    def steps(self) -> int:
        return super().steps + (self.save_imatrix is not None)

    @property
    def chooses_types(self) -> bool:
        return self.budget.mix is None

    def resolve(self, folder: Path, progress: Progress) -> Plan:
        """Calibrate the model and plan the file.

        Raises InputError if the text is too short, UsageError if no types fit the budget.
        """
        calibration_set = self.claim(folder)
        with deterministic(self.device):
            if self.save_imatrix is not None:
                self._save_imatrix(self.save_imatrix, progress)
            result = calibrate_gguf(
                self.source, self._budget_in_bytes, calibration_set, self.preset, folder, progress,
                self._overhead, self.device,
            )  # fmt: skip
        type_ = self.budget.mix or self._nearest_type(result)
        plan = writer.plan(result.checkpoint, self.output, type=type_, adjusted=result.adjusted)
        options = {"type": type_, **self.manifest_options(result)}
        return replace(plan, source=self.source, options=options)

    def _nearest_type(self, result: CalibrationResult) -> str:
        """Find the smallest standard type whose file is at least as large as the calibrated one.

        The header of a GGUF file has to name a file type, although types were chosen one by one.
        """
        data = data_size(result.checkpoint.decoder, LARGEST_TYPE)
        sizes = _standard_data_sizes(self.source.decoder)
        return next((type_ for type_, size in sizes.items() if size >= data), LARGEST_TYPE)

    def _save_imatrix(self, path: Path, progress: Progress) -> None:
        """Collect the importance matrix on the training windows, and write it if it is new."""
        train = self.calibration_set.train
        imatrix = collect(self.source.decoder, train, self.text.name, progress, self.device)
        if not path.is_file() or path.read_bytes() != encoded(imatrix):
            write_imatrix(path, imatrix)

    @cached_property
    def _budget_in_bytes(self) -> Budget:
        """The budget with `nbytes` in place of `like`."""
        if self.budget.like is None:
            return self.budget
        return replace(self.budget, like=None, nbytes=self.limit)

    @cached_property
    def _header_size(self) -> int:
        """The largest size of the header, which lists the changed vectors, in bytes."""
        return writer.header_size(self.source, adjustable_vectors(self.source.decoder))

    @cached_property
    def _overhead(self) -> int:
        """The largest number of bytes of the file that do not belong to matrices.

        They are the header, all vectors, and the padding after each tensor. The padding after a
        matrix depends on its type and is counted as ALIGNMENT bytes.
        """
        decoder = self.source.decoder
        matrices = MatrixId.all(decoder.geometry.n_layer)
        matrix_bytes = 2 * _weight_count(decoder, matrices)  # in F16
        padding = writer.ALIGNMENT * len(matrices)
        return self._header_size + data_size(decoder, "F16") - matrix_bytes + padding


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


def calibrate_gguf(
    source: Checkpoint,
    budget: Budget,
    calibration_set: CalibrationSet,
    preset: CalibrationPreset,
    folder: Path,
    progress: Progress,
    overhead: int = 0,
    device: torch.device = CPU,
) -> CalibrationResult:
    """Choose the type of each matrix and quantize the model, fitted to a text.

    Args:
        source: The model.
        budget: A budget with `nbytes`, `bpw`, `kl` or `mix`.
        calibration_set: The windows of text.
        preset: The amount of work.
        folder: The folder that stores completed steps.
        progress: Advances with the steps.
        overhead: The bytes of the file that do not belong to matrices.
        device: The device of all computations.

    Raises:
        UsageError: No choice of types fits the budget, or a pattern matches no matrix.
        InputError: The rows of a matrix are not whole blocks of any type.
    """
    decoder, vocab_size = source.decoder, source.tokenizer.size
    quantizer = Quantizer(
        decoder, calibration_set, vocab_size, preset.sweeps, folder, progress, device
    )
    expected_kl: float | None = None
    if budget.mix is not None:
        types = _types_of_mix(decoder, budget.mix)
        for pattern, type_ in reversed(budget.fixed):
            types |= dict.fromkeys(_matching_matrices(types, pattern), _codec(type_))
    else:
        codecs = {name: _codec(name) for name in _candidates(decoder, budget.fixed)}
        choices = _apply_fixed_types(quantizer.choices(codecs), budget.fixed)
        limit = _matrix_bytes(choices, budget, decoder, overhead)
        chosen, expected_kl = choose_types(choices, limit)
        types = {name: codecs[type_] for name, type_ in chosen.items()}
    calibrated = quantizer.calibrate(types)
    in_order = [name for name in MatrixId.all(decoder.geometry.n_layer) if name in types]
    table = {name.name(GGUF): types[name].name for name in in_order}
    return CalibrationResult.from_decoder(source, calibrated, table, GGUF, expected_kl)


def check_budget(decoder: Decoder, budget: Budget, overhead: int = 0) -> None:
    """Check a budget before anything is measured.

    Raises UsageError if even the smallest types exceed the budget or a pattern matches no matrix,
    InputError if the rows of a matrix are not whole blocks of any type.
    """
    matrices = MatrixId.all(decoder.geometry.n_layer)
    candidates = [_codec(name) for name in _candidates(decoder, ())]
    fixed: dict[MatrixId, str] = {}
    for pattern, type_ in reversed(budget.fixed):
        fixed |= dict.fromkeys(_matching_matrices(matrices, pattern), type_)
    if budget.mix is not None:
        _types_of_mix(decoder, budget.mix)
    least = 0
    for name in matrices:
        shape = name.tensor(decoder).shape
        codecs = [_codec(fixed[name])] if name in fixed else candidates
        fitting = [codec for codec in codecs if shape[1] % codec.block_size == 0]
        least += min(codec.row_bytes(shape) for codec in fitting or codecs) * shape[0]
    if budget.nbytes is not None and least + overhead > budget.nbytes:
        raise UsageError(
            f"a file of {budget.nbytes} bytes is too small: the least is {least + overhead}"
        )
    weights = _weight_count(decoder, matrices)
    if budget.bpw is not None and least > int(budget.bpw * weights / 8):
        rate = math.ceil(800 * least / weights) / 100
        raise UsageError(f"{budget.bpw:g} bits a weight are too few: the least is {rate:g}")


def adjustable_vectors(decoder: Decoder) -> tuple[str, ...]:
    """List the names in GGUF of the vectors that calibration can change."""
    layers = range(decoder.geometry.n_layer)
    biases = [GGUF.name(part, i) for i in layers for part in ("fc_in_bias", "fc_out_bias")]
    return (*biases, GGUF.name("head_bias"))


def _codec(name: str) -> BlockCodec:
    """Return the block codec of a type; raises UsageError if there is none of this name."""
    encoding = ENCODINGS.get(name)
    if not isinstance(encoding, BlockCodec):
        known = ", ".join(n for n, e in ENCODINGS.items() if isinstance(e, BlockCodec))
        raise UsageError(f"type {name!r} is not one of {known}")
    return encoding


def _candidates(decoder: Decoder, fixed: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """List the types to measure: those that are chosen from under a budget, and the fixed ones."""
    matrices = MatrixId.all(decoder.geometry.n_layer)
    columns = {name.tensor(decoder).shape[1] for name in matrices}
    needs_small_blocks = any(n % _codec(CANDIDATES[0]).block_size for n in columns)
    small_types = SMALL_BLOCK_CANDIDATES if needs_small_blocks else ()
    fixed_types = (type_ for _, type_ in fixed)
    return tuple(dict.fromkeys((*CANDIDATES, *small_types, *fixed_types)))


def _types_of_mix(decoder: Decoder, mix: str) -> dict[MatrixId, BlockCodec]:
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


def _matrix_bytes(
    choices: Mapping[MatrixId, Sequence[Choice]], budget: Budget, decoder: Decoder, overhead: int
) -> int:
    """Return the bytes that all matrices may take; raises UsageError if no types lose so little."""
    if budget.nbytes is not None:
        return budget.nbytes - overhead
    if budget.kl is not None:
        for nbytes, loss in pareto_frontier(choices):
            if loss <= budget.kl:
                return nbytes
        raise UsageError(f"no choice of types loses as little as {budget.kl:g}; allow more")
    if budget.bpw is not None:
        return int(budget.bpw * _weight_count(decoder, choices) / 8)
    raise UsageError("a budget needs bytes, bits a weight or a divergence")


def _apply_fixed_types(
    choices: Mapping[MatrixId, Sequence[Choice]], fixed: Sequence[tuple[str, str]]
) -> dict[MatrixId, Sequence[Choice]]:
    """Restrict the choices of each matrix that matches a pattern of `fixed` to the pattern's type.

    Raises UsageError if a matrix cannot have its fixed type.
    """
    remaining = dict(choices)
    for pattern, type_ in reversed(fixed):  # the first matching pattern is applied last
        for name in _matching_matrices(choices, pattern):
            remaining[name] = [c for c in choices[name] if c.type == type_]
            if not remaining[name]:
                known = ", ".join(c.type for c in choices[name])
                raise UsageError(f"{name.name(GGUF)}: type {type_!r} is not one of {known}")
    return remaining


def _matching_matrices(matrices: Iterable[MatrixId], pattern: str) -> list[MatrixId]:
    """List the matrices whose name in GGUF matches a pattern; raises UsageError if none does."""
    matching = [name for name in matrices if fnmatch.fnmatchcase(name.name(GGUF), pattern)]
    if not matching:
        raise UsageError(
            f"no matrix is called {pattern!r}; there is for example {GGUF.name('wte')}"
        )
    return matching


def _weight_count(decoder: Decoder, matrices: Iterable[MatrixId]) -> int:
    """Count the weights of matrices."""
    return sum(math.prod(name.tensor(decoder).shape) for name in matrices)
