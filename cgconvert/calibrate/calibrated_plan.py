"""What plans that are fitted to a text have in common: the text's windows, the folder of steps."""

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
from cgconvert.write.journal import sources
from cgconvert.write.manifest import libraries
from cgconvert.write.plan import Plan

__all__ = ["CalibratedPlan"]

LAYER, ENDS, SENSITIVITY, CUBIC = 16, 3, 12, 8
"""Floating-point operations a weight and token: what a layer, the embedding and head, and the
sensitivities were seen to take beside a matrix product's speed; CUBIC is by cubed width, of the
inverse of the moments."""

PROBE, GPU_PROBE = 1536, 8192
"""Columns of the matrices whose product is timed."""

ROUNDS = 8

LAUNCHES = 15
"""Operations on a column in a pass of feedback or descent: what a GPU's time goes into there."""


@dataclass(frozen=True)
class CalibratedPlan(ABC):
    """A LazyPlan for `output`, computed on `device`; `asked` is what was asked for, for
    the manifest."""

    resolved: ClassVar[bool] = False

    source: Checkpoint
    output: Path
    text: Text
    effort: CalibrationPreset
    asked: Mapping[str, Any]
    device: torch.device = field(default=CPU, kw_only=True)

    @property
    @abstractmethod
    def limit(self) -> int:
        """Bytes that will be written at most."""

    @property
    def chooses(self) -> bool:
        """Whether types are chosen, by sensitivities."""
        return False

    @abstractmethod
    def resolve(self, folder: Path, progress: Progress) -> Plan:
        """See LazyPlan."""

    @cached_property
    def windows(self) -> CalibrationSet:
        """Raises InputError where the text is too short."""
        ids = self.text.ids(self.source.tokenizer)
        return CalibrationSet.sample(ids, self.source.geometry, self.text.name, self.effort)

    @property
    def nbytes(self) -> int:
        """The file, the same as steps, and hidden states: ours and the source's of a layer, and
        those of all layers that sensitivities are measured with."""
        g, w = self.source.geometry, self.windows
        tokens = w.tokens
        measured = min(SENSITIVITY_WINDOWS * w.length, tokens)
        return 2 * self.limit + 4 * g.n_embd * (2 * tokens + g.n_layer * measured)

    def describe(self) -> str:
        w = self.windows
        with deterministic(self.device):
            seconds = self._seconds()
        return (
            f"{self.text.name}: {len(w.train)} windows of {w.length} tokens to fit to, "
            f"{len(w.validation)} to judge by; about {_human(seconds)} here"
        )

    def claim(self, folder: Path) -> CalibrationSet:
        """Empty `folder` unless what is in it is of the same source and text."""
        told = [
            libraries(), sources(self.source), self.windows.sha256, self._preset_key(),
            self.source.geometry.as_dict(), self.format, self.device.type,
        ]  # fmt: skip
        key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        mark = folder / "key"
        if not mark.is_file() or mark.read_text() != key:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            mark.write_text(key)
        return self.windows

    def _preset_key(self) -> dict[str, str | int]:
        """The preset as the key of kept steps has it."""
        preset = self.effort
        return {
            "name": preset.name, "fitted": preset.train, "held_out": preset.validation,
            "sweeps": preset.sweeps, "length": preset.length,
        }  # fmt: skip

    @property
    @abstractmethod
    def format(self) -> str:
        """The artefact's."""

    def options(self, done: CalibrationResult, windows: CalibrationSet) -> dict[str, Any]:
        """For the manifest."""
        found = {
            **self.asked,
            "effort": self.effort.name,
            "calibration": {
                "text": self.text.name,
                "sha256": self.text.sha256,
                "windows": windows.sha256,
                "device": self.device.type,
            },
            "types": dict(done.types),
            "adjusted": list(done.adjusted),
        }
        if done.expected_kl is not None:
            found["expected_kl"] = float(f"{done.expected_kl:.3g}")
        return found

    def _seconds(self) -> float:
        """An estimate, from how fast a matrix product is now."""
        g, w = self.source.geometry, self.windows
        tokens = w.tokens
        layers = g.n_layer * (4 * g.n_embd + 2 * g.n_inner) * g.n_embd
        ends = 2 * g.vocab_size * g.n_embd
        measured = min(SENSITIVITY_WINDOWS * w.length, tokens)
        work = tokens * (LAYER * layers + ENDS * ends) + measured * SENSITIVITY * (layers + ends)
        work += CUBIC * g.n_layer * (2 * g.n_embd**3 + g.n_inner**3)
        n = PROBE if self.device.type == "cpu" else GPU_PROBE
        probe = torch.ones(n, n, device=self.device)
        seconds = work * _timed(lambda: probe @ probe) / (2 * n**3)
        if self.device.type == "cpu":
            return seconds
        columns = g.n_layer * (5 * g.n_embd + g.n_inner) + 2 * g.n_embd
        passes = (1 if self.chooses else 0) + 1 + self.effort.sweeps
        some = torch.ones(n, device=self.device)
        return seconds + columns * passes * LAUNCHES * _timed(lambda: some.mul_(1), 100)


def _timed(work: Callable[[], torch.Tensor], times: int = 1) -> float:
    """Seconds of one of so many, in the quickest of some rounds: the first is slower, and so is any
    that something else takes the cores from. To look at a number waits for a GPU."""
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(times):
            last = work()
        float(last.flatten()[0])
        found.append((time.perf_counter() - began) / times)
    return min(found)


def _human(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds / 5) * 5)} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
