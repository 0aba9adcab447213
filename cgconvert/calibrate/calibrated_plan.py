"""A plan that is calibrated on a text before anything can be written, for any format."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from cgconvert.calibrate.calibration_set import CalibrationSet
from cgconvert.calibrate.preset import CalibrationPreset
from cgconvert.calibrate.quantizer import SENSITIVITY_WINDOWS
from cgconvert.calibrate.result import CalibrationResult
from cgconvert.io.progress import Progress
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.model.device import CPU, deterministic
from cgconvert.texts.text import Text
from cgconvert.write.journal import source_identity
from cgconvert.write.manifest import library_versions
from cgconvert.write.plan import Plan

__all__ = ["CalibratedPlan"]

LAYER_COST, ENDS_COST, SENSITIVITY_COST = 16, 3, 12
"""Floating-point operations a weight and token, as measured beside the speed of a matrix product:
of a layer, of the embedding and head, and of sensitivities."""

HESSIAN_COST = 8
"""Floating-point operations by the cube of the columns: the factor of a Hessian's inverse."""

PROBE_COLUMNS, GPU_PROBE_COLUMNS = 1536, 8192
"""Rows and columns of the matrices whose product is timed, on the CPU and on a GPU."""

ROUNDS = 8
"""How often a probe is timed; the quickest counts."""

KERNELS_PER_COLUMN = 15
"""Operations on a column in a pass of GPTQ or of coordinate descent. On a GPU starting them is what
takes the time."""


@dataclass(frozen=True)
class CalibratedPlan(ABC):
    """A LazyPlan whose weights are fitted to a text when it is resolved.

    Attributes:
        source: The model.
        output: Where the artefact goes.
        text: The calibration text.
        preset: How much is done.
        requested: Options of the request, for the manifest.
        device: Computes the calibration.
    """

    resolved: ClassVar[bool] = False

    source: Checkpoint
    output: Path
    text: Text
    preset: CalibrationPreset
    requested: Mapping[str, Any]
    device: torch.device = field(default=CPU, kw_only=True)

    @property
    @abstractmethod
    def format(self) -> str:
        """The artefact's format."""

    @property
    @abstractmethod
    def limit(self) -> int:
        """The most bytes that will be written."""

    @property
    def chooses_types(self) -> bool:
        """Whether types are chosen by sensitivities."""
        return False

    @abstractmethod
    def resolve(self, folder: Path, progress: Progress) -> Plan:
        """Calibrate, and return the plan of what is to be written; see LazyPlan."""

    @cached_property
    def calibration_set(self) -> CalibrationSet:
        """The windows of the text. Raises InputError where the text is too short."""
        ids = self.text.ids(self.source.tokenizer)
        return CalibrationSet.sample(ids, self.source.geometry, self.text.name, self.preset)

    @property
    def nbytes(self) -> int:
        """The most disk space needed, in bytes.

        That is the file, the same again for kept steps, two models' hidden states before a layer,
        and one model's before every layer, which sensitivities are measured with.
        """
        g, windows = self.source.geometry, self.calibration_set
        states = 2 * windows.tokens + g.n_layer * self._sensitivity_tokens
        return 2 * self.limit + 4 * g.n_embd * states

    @property
    def _sensitivity_tokens(self) -> int:
        windows = self.calibration_set
        return min(SENSITIVITY_WINDOWS * windows.length, windows.tokens)

    def describe(self) -> str:
        """Describe the windows in a line, and estimate how long calibration will take here."""
        windows = self.calibration_set
        with deterministic(self.device):
            seconds = self._seconds()
        return (
            f"{self.text.name}: {len(windows.train)} windows of {windows.length} tokens to fit to, "
            f"{len(windows.validation)} to judge by; about {_human(seconds)} here"
        )

    def claim(self, folder: Path) -> CalibrationSet:
        """Empty `folder` unless its steps are of this source, text and device."""
        preset = {
            "name": self.preset.name, "fitted": self.preset.train,
            "held_out": self.preset.validation, "sweeps": self.preset.sweeps,
            "length": self.preset.length,
        }  # fmt: skip
        identity = [
            library_versions(), source_identity(self.source), self.calibration_set.sha256, preset,
            self.source.geometry.as_dict(), self.format, self.device.type,
        ]  # fmt: skip
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        key_file = folder / "key"
        if not key_file.is_file() or key_file.read_text() != key:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            key_file.write_text(key)
        return self.calibration_set

    def manifest_options(self, result: CalibrationResult) -> dict[str, Any]:
        """The options of the manifest: what was requested, and what calibration made of it."""
        options = {
            **self.requested,
            "effort": self.preset.name,
            "calibration": {
                "text": self.text.name,
                "sha256": self.text.sha256,
                "windows": self.calibration_set.sha256,
                "device": self.device.type,
            },
            "types": dict(result.types),
            "adjusted": list(result.adjusted),
        }
        if result.expected_kl is not None:
            options["expected_kl"] = float(f"{result.expected_kl:.3g}")
        return options

    def _seconds(self) -> float:
        """Estimate how long calibration takes, from how fast a matrix product is now."""
        g, tokens = self.source.geometry, self.calibration_set.tokens
        layers = g.n_layer * (4 * g.n_embd + 2 * g.n_inner) * g.n_embd
        ends = 2 * g.vocab_size * g.n_embd
        work = tokens * (LAYER_COST * layers + ENDS_COST * ends)
        work += self._sensitivity_tokens * SENSITIVITY_COST * (layers + ends)
        work += HESSIAN_COST * g.n_layer * (2 * g.n_embd**3 + g.n_inner**3)
        n = PROBE_COLUMNS if self.device.type == "cpu" else GPU_PROBE_COLUMNS
        probe = torch.ones(n, n, device=self.device)
        seconds = work * _timed(lambda: probe @ probe) / (2 * n**3)
        if self.device.type == "cpu":
            return seconds
        columns = g.n_layer * (5 * g.n_embd + g.n_inner) + 2 * g.n_embd
        passes = (1 if self.chooses_types else 0) + 1 + self.preset.sweeps
        column = torch.ones(n, device=self.device)
        kernel = _timed(lambda: column.mul_(1), 100)
        return seconds + columns * passes * KERNELS_PER_COLUMN * kernel


def _timed(work: Callable[[], torch.Tensor], times: int = 1) -> float:
    """Seconds of one call among so many, in the quickest of some rounds.

    The first round is slower, and so is any that another process takes the cores from.
    """
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(times):
            last = work()
        float(last.flatten()[0])  # waits for a GPU
        seconds.append((time.perf_counter() - began) / times)
    return min(seconds)


def _human(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds / 5) * 5)} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
