"""GGUF and ONNX artefacts that are fitted to a text before anything is written."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cgconvert.calibrate.calibrated_plan import CalibratedPlan
from cgconvert.calibrate.gguf import (
    Budget,
    adjustable_vectors,
    calibrate_gguf,
    check_budget,
)
from cgconvert.calibrate.imatrix import collect
from cgconvert.calibrate.onnx import calibrate_onnx, variant_types
from cgconvert.errors import InputError
from cgconvert.formats.gguf import writer as gguf
from cgconvert.formats.gguf.imatrix_file import encoded, write_imatrix
from cgconvert.formats.onnx import writer as onnx
from cgconvert.formats.onnx.variant import Variant
from cgconvert.io.progress import Progress
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.model.device import deterministic
from cgconvert.write.plan import Plan

__all__ = ["CalibratedGGUF", "CalibratedONNX", "standard_sizes"]

STANDARD = ("Q3_K", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0")
"""File types. A file is called after the smallest that is no smaller."""

LARGEST = "Q8_0"
"""No allocation takes more."""


@dataclass(frozen=True)
class CalibratedGGUF(CalibratedPlan):
    """See calibrate_gguf. `save` is where the text's imatrix goes."""

    budget: Budget
    save: Path | None = None
    format: str = "gguf"

    def __post_init__(self) -> None:
        """Raises UsageError for a budget that cannot be met, before anything is measured."""
        check_budget(self.source.decoder, self._resolved(), self._overhead())

    @property
    def limit(self) -> int:
        """Bytes that the file has at most."""
        if self.budget.nbytes is not None:
            return self.budget.nbytes
        if self.budget.like is not None:
            return self._plain(self.budget.like, ()).nbytes
        return self._plain(self.budget.mix or LARGEST).nbytes

    @property
    def chooses(self) -> bool:
        return self.budget.mix is None

    def resolve(self, folder: Path, progress: Progress) -> Plan:
        """Raises InputError where the text is too short, UsageError where nothing fits."""
        windows = self.claim(folder)
        with deterministic(self.device):
            if self.save is not None:
                self._collect(self.save, windows.train, progress)
            done = calibrate_gguf(
                self.source, self._resolved(), windows, self.effort, folder, progress,
                self._overhead(), self.device,
            )  # fmt: skip
        plan = gguf.plan(done.checkpoint, self.output, type="F16", adjusted=done.adjusted)
        sizes = standard_sizes(self.source, done.adjusted)
        label = next((t for t, size in sizes.items() if size >= plan.nbytes), LARGEST)
        type_ = self.budget.mix or label
        plan = gguf.plan(done.checkpoint, self.output, type=type_, adjusted=done.adjusted)
        options = {"type": type_, **self.options(done, windows)}
        return replace(plan, source=self.source, options=options)

    def _collect(self, path: Path, windows: torch.Tensor, progress: Progress) -> None:
        decoder, name = self.source.decoder, self.text.name
        found = collect(decoder, windows, name, progress, self.device)
        if not path.is_file() or path.read_bytes() != encoded(found):
            write_imatrix(path, found)

    def _resolved(self) -> Budget:
        """With bytes for a standard mix whose bytes are the limit."""
        if self.budget.like is None:
            return self.budget
        return replace(self.budget, like=None, nbytes=self.limit)

    def _overhead(self) -> int:
        """Bytes of the file that are not matrices': the padding behind each at its most."""
        plan = self._plain("F16")
        matrices = [item for item in plan.items if len(item.source.shape) == 2]
        return plan.nbytes - sum(i.nbytes - gguf.ALIGNMENT for i in matrices)

    def _plain(self, type_: str, adjusted: Sequence[str] | None = None) -> Plan:
        """Of the search alone, with room for the names of all vectors that can change."""
        if adjusted is None:
            adjusted = adjustable_vectors(self.source.decoder)
        return gguf.plan(self.source, self.output, type=type_, adjusted=adjusted)


@dataclass(frozen=True)
class CalibratedONNX(CalibratedPlan):
    """See calibrate_onnx; `blocks` are options of formats.onnx.plan, so graph, bytes and speed are
    those of the plan without a text."""

    blocks: dict[str, Any] = field(default_factory=dict)
    format: str = "onnx"

    def __post_init__(self) -> None:
        """Raises UsageError for blocks that there are not, InputError where rows do not divide."""
        variant_types(self.source.geometry, self._variant)

    @property
    def _variant(self) -> Variant:
        return Variant(bits=4, **self.blocks)

    @property
    def limit(self) -> int:
        return onnx.plan(self.source, self.output, bits=4, **self.blocks).nbytes

    def resolve(self, folder: Path, progress: Progress) -> Plan:
        """Raises InputError where the text is too short."""
        windows = self.claim(folder)
        with deterministic(self.device):
            done = calibrate_onnx(
                self.source, self._variant, windows, self.effort, folder, progress,
                device=self.device,
            )  # fmt: skip
        plan = onnx.plan(
            done.checkpoint, self.output, bits=4, adjusted=done.adjusted, **self.blocks
        )
        options = {**plan.options, **self.options(done, windows)}
        return replace(plan, source=self.source, options=options)


def standard_sizes(checkpoint: Checkpoint, adjusted: Sequence[str] = ()) -> dict[str, int]:
    """Bytes of the whole file by type, the smallest first; without those whose blocks do not fit
    the rows."""
    found = {}
    for type_ in STANDARD:
        with contextlib.suppress(InputError):
            found[type_] = gguf.plan(
                checkpoint, Path("x.gguf"), type=type_, adjusted=adjusted
            ).nbytes
    return dict(sorted(found.items(), key=lambda entry: entry[1]))
