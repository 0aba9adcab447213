"""Quantize a model to GGUF with a calibration text: the choice of types and the plan.

A budget is a file size, a number of bits per weight or a loss (budget.py). The type of each matrix
is chosen so that the loss of the model's output is least within the budget (sensitivity.py,
allocation.py). Then every matrix is fitted to its inputs (layerwise.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from cgconvert.calibrate.allocation import Choice, choose_types, pareto_frontier
from cgconvert.calibrate.budget import (
    Budget,
    candidate_types,
    check_budget,
    codec_of,
    in_bytes,
    largest_file,
    matching_matrices,
    matrix_bytes,
    overhead,
    type_name,
    types_of_budget,
)
from cgconvert.calibrate.calibrated_plan import CalibratedPlan, CalibrationResult
from cgconvert.calibrate.calibration_set import CalibrationSet
from cgconvert.calibrate.imatrix import collect
from cgconvert.calibrate.presets import CalibrationPreset
from cgconvert.calibrate.quantizer import Quantizer
from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.errors import UsageError
from cgconvert.formats.gguf import writer
from cgconvert.formats.gguf.generation import generation_metadata
from cgconvert.formats.gguf.imatrix import MAX_BYTES, encoded, write_imatrix
from cgconvert.io.progress import Progress
from cgconvert.io.reading import read_bytes
from cgconvert.lazy import torch
from cgconvert.model.decoder import Checkpoint, Decoder
from cgconvert.model.device import deterministic, torch_device
from cgconvert.model.matrix_id import MatrixId
from cgconvert.model.tensor_names import GGUF
from cgconvert.write.plan import Plan

__all__ = ["CalibratedGGUF", "calibrate_gguf"]


SAFETY = 0.9
"""The share of an allowed loss that is aimed at after a larger loss was measured than expected."""


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
        check_budget(self.source, self._budget_in_bytes)

    @cached_property
    def limit(self) -> int:
        return largest_file(self.source, self._budget_in_bytes)

    @cached_property
    def type(self) -> str:
        """The name of the file's type."""
        return type_name(self.source, self._budget_in_bytes)

    @property
    def notes(self) -> tuple[str, ...]:
        return generation_metadata(self.source).notes

    @property
    def steps(self) -> int:
        return super().steps + (self.save_imatrix is not None)

    @property
    def chooses_types(self) -> bool:
        return self.budget.mix is None

    @property
    def matrices(self) -> str:
        if self.budget.mix is not None:
            return f"the types of {self.budget.mix}, fitted to a text"
        return f"{', '.join(self._candidates)}: what loses least"

    @property
    def timed_codec(self) -> BlockCodec:
        return codec_of("Q4_K" if "Q4_K" in self._candidates else self._candidates[0])

    @property
    def candidates(self) -> int:
        return len(self._candidates)

    @property
    def _candidates(self) -> tuple[str, ...]:
        """The types that matrices can have."""
        return candidate_types(self.source.decoder, self.budget.fixed)

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
                overhead(self.source), self.device,
            )  # fmt: skip
        plan = writer.plan(result.checkpoint, self.output, adjusted=result.adjusted, name=self.type)
        options = {"type": self.type, **self.manifest_options(result)}
        return replace(plan, source=self.source, options=options)

    def _save_imatrix(self, path: Path, progress: Progress) -> None:
        """Collect the importance matrix on the training windows, and write it if it is new."""
        train = self.calibration_set.train
        imatrix = collect(self.source.decoder, train, self.text.name, progress, self.device)
        if not path.exists():
            write_imatrix(path, imatrix)
        elif read_bytes(path, MAX_BYTES, kind="an imatrix") != encoded(imatrix):
            raise UsageError(f"{path}: exists, with other numbers; choose another `save_imatrix`")

    @cached_property
    def _budget_in_bytes(self) -> Budget:
        """The budget with `nbytes` in place of `like`."""
        return in_bytes(self.budget, self.source)


def calibrate_gguf(
    source: Checkpoint,
    budget: Budget,
    calibration_set: CalibrationSet,
    preset: CalibrationPreset,
    folder: Path,
    progress: Progress,
    overhead: int = 0,
    device: torch.device | None = None,
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
    device = device or torch_device("cpu")
    decoder, vocab_size = source.decoder, source.tokenizer.size
    quantizer = Quantizer(
        decoder, calibration_set, vocab_size, preset.sweeps, folder, progress, device
    )
    expected_kl: float | None = None
    if budget.mix is not None:
        types = types_of_budget(decoder, budget)
        calibrated, promise = quantizer.calibrate(types)
    else:
        codecs = {name: codec_of(name) for name in candidate_types(decoder, budget.fixed)}
        choices = _apply_fixed_types(quantizer.choices(codecs), budget.fixed)
        limit = budget
        while True:
            chosen, expected_kl = choose_types(choices, _limit(choices, limit, decoder, overhead))
            types = {name: codecs[type_] for name, type_ in chosen.items()}
            calibrated, promise = quantizer.calibrate(types)
            if budget.kl is None or promise.kl <= budget.kl:
                break
            # More was lost than expected, so types are chosen as if less were allowed.
            limit = replace(budget, kl=SAFETY * expected_kl * budget.kl / promise.kl)
    in_order = [name for name in MatrixId.all(decoder.geometry.n_layer) if name in types]
    table = {name.name(GGUF): types[name].name for name in in_order}
    return CalibrationResult.from_decoder(source, calibrated, table, GGUF, expected_kl, promise)


def _limit(
    choices: Mapping[MatrixId, Sequence[Choice]], budget: Budget, decoder: Decoder, overhead: int
) -> int:
    """Return the bytes that all matrices may take; raises UsageError if no types lose so little."""
    if budget.kl is None:
        return matrix_bytes(decoder, budget, overhead)
    for nbytes, loss in pareto_frontier(choices):
        if loss <= budget.kl:
            return nbytes
    raise UsageError("no choice of types loses as little as `max_kl` says; allow more")


def _apply_fixed_types(
    choices: Mapping[MatrixId, Sequence[Choice]], fixed: Sequence[tuple[str, str]]
) -> dict[MatrixId, Sequence[Choice]]:
    """Restrict the choices of each matrix that matches a pattern of `fixed` to the pattern's type.

    Raises UsageError if a matrix cannot have its fixed type.
    """
    remaining = dict(choices)
    for pattern, type_ in reversed(fixed):  # the first matching pattern is applied last
        for name in matching_matrices(choices, pattern):
            remaining[name] = [c for c in choices[name] if c.type == type_]
            if not remaining[name]:
                known = ", ".join(c.type for c in choices[name])
                raise UsageError(f"{name.name(GGUF)}: type {type_!r} is not one of {known}")
    return remaining
