"""Quantize a model to GGUF on a calibration text: the plan, the budget and the types.

A budget is a size, a rate of bits or a loss. Which matrix gets which type follows from what each
type would cost the model's output (sensitivity.py, allocation.py); then every matrix is fitted to
the inputs it meets (layerwise.py).
"""

from __future__ import annotations

import contextlib
import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from cgconvert.calibrate.allocation import Choice, choose_types, pareto_frontier
from cgconvert.calibrate.calibrated_plan import CalibratedPlan
from cgconvert.calibrate.calibration_set import CalibrationSet
from cgconvert.calibrate.imatrix import collect
from cgconvert.calibrate.preset import CalibrationPreset
from cgconvert.calibrate.quantizer import Quantizer
from cgconvert.calibrate.result import CalibrationResult
from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.ggml import ENCODINGS
from cgconvert.errors import InputError, UsageError
from cgconvert.formats.gguf import writer
from cgconvert.formats.gguf.imatrix import encoded, write_imatrix
from cgconvert.formats.gguf.types import TYPES, data_size
from cgconvert.io.progress import Progress
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.model.decoder import Decoder
from cgconvert.model.device import CPU, deterministic
from cgconvert.model.matrix_id import MatrixId
from cgconvert.model.tensor_names import GGUF
from cgconvert.write.plan import Plan

__all__ = ["Budget", "CalibratedGGUF", "calibrate_gguf", "standard_sizes"]

STANDARD_TYPES = ("Q3_K", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0")
"""File types that a calibrated file is named after: the smallest that is no smaller than it."""

LARGEST_TYPE = "Q8_0"
"""The file type that no allocation is larger than."""

CANDIDATES = ("Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
"""Types that a budget chooses from; others of the same size lose more."""

SMALL_BLOCK_CANDIDATES = ("Q4_0", "Q4_1", "Q8_0")
"""Types it chooses from too, where rows do not divide into blocks of 256."""


@dataclass(frozen=True)
class Budget:
    """How small the file has to be: one of the first five.

    Attributes:
        like: A file type; the file may have the bytes that it has in this type.
        nbytes: Bytes of the whole file.
        bpw: Bits a weight, of all matrices together.
        kl: Mean KL divergence that may be lost, in nats a token.
        mix: A file type that is taken as it is: nothing is chosen.
        fixed: Types of certain matrices: a pattern of the tensor's name in GGUF and a type each,
            first match first.
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
        budget: How small the file has to be.
        save_imatrix: Where the text's importance matrix is written too, if anywhere.
    """

    budget: Budget
    save_imatrix: Path | None = None
    format: str = "gguf"

    def __post_init__(self) -> None:
        """Refuse a budget that cannot be met, before anything is measured: UsageError."""
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
    def chooses_types(self) -> bool:
        return self.budget.mix is None

    def resolve(self, folder: Path, progress: Progress) -> Plan:
        """Calibrate, and plan the file.

        Raises InputError where the text is too short, UsageError where nothing fits the budget.
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
        """The smallest standard type in which the file would be no smaller than calibrated."""
        data = data_size(result.checkpoint.decoder, LARGEST_TYPE)
        sizes = _standard_data_sizes(self.source.decoder)
        return next((type_ for type_, size in sizes.items() if size >= data), LARGEST_TYPE)

    def _save_imatrix(self, path: Path, progress: Progress) -> None:
        train = self.calibration_set.train
        imatrix = collect(self.source.decoder, train, self.text.name, progress, self.device)
        if not path.is_file() or path.read_bytes() != encoded(imatrix):
            write_imatrix(path, imatrix)

    @cached_property
    def _budget_in_bytes(self) -> Budget:
        """The budget, with bytes in the place of a file type whose bytes are the limit."""
        if self.budget.like is None:
            return self.budget
        return replace(self.budget, like=None, nbytes=self.limit)

    @cached_property
    def _header_size(self) -> int:
        """Bytes of the header with the names of all vectors that can change."""
        return writer.header_size(self.source, adjustable_vectors(self.source.decoder))

    @cached_property
    def _overhead(self) -> int:
        """Bytes of the file that are not matrices'; the padding behind each counts at its most."""
        decoder = self.source.decoder
        matrices = MatrixId.all(decoder.geometry.n_layer)
        unpadded = 2 * _weights(decoder, matrices) - writer.ALIGNMENT * len(matrices)
        return self._header_size + data_size(decoder, "F16") - unpadded


def standard_sizes(checkpoint: Checkpoint) -> dict[str, int]:
    """Bytes of the whole file in each standard type, without calibration, the smallest first.

    Types whose blocks the rows do not divide into are left out.
    """
    header = writer.header_size(checkpoint)
    return {type_: header + n for type_, n in _standard_data_sizes(checkpoint.decoder).items()}


def _standard_data_sizes(decoder: Decoder) -> dict[str, int]:
    """Bytes of all tensors in each standard type, the smallest first."""
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
    """Choose the types and fit the matrices.

    Args:
        source: The model.
        budget: With `nbytes`, `bpw`, `kl` or `mix`.
        calibration_set: The windows of text.
        preset: How much is done.
        folder: Keeps completed steps.
        progress: Advances with the steps.
        overhead: Bytes of the file that are not matrices'.
        device: Computes it.

    Raises:
        UsageError: Nothing fits the budget, or a pattern fits no matrix.
        InputError: Rows divide into no type's blocks.
    """
    decoder, vocab_size = source.decoder, source.tokenizer.size
    quantizer = Quantizer(
        decoder, calibration_set, vocab_size, preset.sweeps, folder, progress, device
    )
    expected_kl: float | None = None
    if budget.mix is not None:
        types = _types_of_mix(decoder, budget.mix)
        for pattern, type_ in reversed(budget.fixed):
            types |= dict.fromkeys(_matching(types, pattern), _codec(type_))
    else:
        codecs = {name: _codec(name) for name in _candidates(decoder, budget.fixed)}
        choices = _with_fixed(quantizer.choices(codecs), budget.fixed)
        limit = _matrix_bytes(choices, budget, decoder, overhead)
        chosen, expected_kl = choose_types(choices, limit)
        types = {name: codecs[type_] for name, type_ in chosen.items()}
    calibrated = quantizer.calibrate(types)
    in_order = [name for name in MatrixId.all(decoder.geometry.n_layer) if name in types]
    table = {name.name(GGUF): types[name].name for name in in_order}
    return CalibrationResult.of(source, calibrated, table, GGUF, expected_kl)


def check_budget(decoder: Decoder, budget: Budget, overhead: int = 0) -> None:
    """Check what can be known of a budget before anything is measured.

    Raises UsageError, saying what is the least, for a budget that cannot be met, and for a pattern
    that fits no matrix; InputError where rows divide into no type's blocks.
    """
    matrices = MatrixId.all(decoder.geometry.n_layer)
    candidates = [_codec(name) for name in _candidates(decoder, ())]
    fixed: dict[MatrixId, str] = {}
    for pattern, type_ in reversed(budget.fixed):
        fixed |= dict.fromkeys(_matching(matrices, pattern), type_)
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
    weights = _weights(decoder, matrices)
    if budget.bpw is not None and least > int(budget.bpw * weights / 8):
        rate = math.ceil(800 * least / weights) / 100
        raise UsageError(f"{budget.bpw:g} bits a weight are too few: the least is {rate:g}")


def adjustable_vectors(decoder: Decoder) -> tuple[str, ...]:
    """Names in GGUF of the vectors that calibration can change."""
    layers = range(decoder.geometry.n_layer)
    biases = [GGUF.name(part, i) for i in layers for part in ("fc_in_bias", "fc_out_bias")]
    return (*biases, GGUF.name("head_bias"))


def _codec(name: str) -> BlockCodec:
    encoding = ENCODINGS.get(name)
    if not isinstance(encoding, BlockCodec):
        known = ", ".join(n for n, e in ENCODINGS.items() if isinstance(e, BlockCodec))
        raise UsageError(f"type {name!r} is not one of {known}")
    return encoding


def _candidates(decoder: Decoder, fixed: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """The types to measure: those a budget chooses from, and the fixed ones."""
    matrices = MatrixId.all(decoder.geometry.n_layer)
    columns = {name.tensor(decoder).shape[1] for name in matrices}
    small = any(n % _codec(CANDIDATES[0]).block_size for n in columns)
    extra = (type_ for _, type_ in fixed)
    return tuple(dict.fromkeys((*CANDIDATES, *(SMALL_BLOCK_CANDIDATES if small else ()), *extra)))


def _types_of_mix(decoder: Decoder, mix: str) -> dict[MatrixId, BlockCodec]:
    """The type of each quantized matrix in a file type.

    Raises InputError where a matrix does not divide into its type's blocks.
    """
    types: dict[MatrixId, BlockCodec] = {}
    file_type, n_layer = TYPES[mix], decoder.geometry.n_layer
    for name in MatrixId.all(n_layer):
        at = () if name.layer is None else (name.layer, n_layer)
        encoding = file_type.encoding_of(name.part, *at)
        if isinstance(encoding, BlockCodec):
            encoding.row_bytes(name.tensor(decoder).shape)
            types[name] = encoding
    return types


def _matrix_bytes(
    choices: Mapping[MatrixId, Sequence[Choice]], budget: Budget, decoder: Decoder, overhead: int
) -> int:
    """The bytes that the matrices may take together."""
    if budget.nbytes is not None:
        return budget.nbytes - overhead
    if budget.kl is not None:
        for nbytes, loss in pareto_frontier(choices):
            if loss <= budget.kl:
                return nbytes
        raise UsageError(f"no choice of types loses as little as {budget.kl:g}; allow more")
    if budget.bpw is not None:
        return int(budget.bpw * _weights(decoder, choices) / 8)
    raise UsageError("a budget needs bytes, bits a weight or a divergence")


def _with_fixed(
    choices: Mapping[MatrixId, Sequence[Choice]], fixed: Sequence[tuple[str, str]]
) -> dict[MatrixId, Sequence[Choice]]:
    """The choices without those that `fixed` rules out."""
    left = dict(choices)
    for pattern, type_ in reversed(fixed):
        for name in _matching(choices, pattern):
            left[name] = [c for c in choices[name] if c.type == type_]
            if not left[name]:
                known = ", ".join(c.type for c in choices[name])
                raise UsageError(f"{name.name(GGUF)}: type {type_!r} is not one of {known}")
    return left


def _matching(matrices: Iterable[MatrixId], pattern: str) -> list[MatrixId]:
    """Those whose name in GGUF fits a pattern. Raises UsageError where there are none."""
    matching = [name for name in matrices if fnmatch.fnmatchcase(name.name(GGUF), pattern)]
    if not matching:
        raise UsageError(f"no matrix is called {pattern!r}; there is {GGUF.name('wte')}, for one")
    return matching


def _weights(decoder: Decoder, matrices: Iterable[MatrixId]) -> int:
    return sum(math.prod(name.tensor(decoder).shape) for name in matrices)
