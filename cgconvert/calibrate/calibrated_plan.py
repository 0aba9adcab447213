"""A plan that is calibrated on a text before it can be written, and the result of calibration.

Both are the same for every format.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from cgconvert.calibrate.calibration_set import CalibrationSet
from cgconvert.calibrate.estimate import Measurements, Work
from cgconvert.calibrate.presets import CalibrationPreset
from cgconvert.calibrate.quantizer import SENSITIVITY_WINDOWS
from cgconvert.calibrate.rounded_plan import duration_range, rounding_seconds
from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.quantized_tensor import QuantizedTensor
from cgconvert.io.cache import key_of
from cgconvert.io.progress import Progress, format_bytes
from cgconvert.io.reading import read_bytes
from cgconvert.lazy import torch
from cgconvert.model.decoder import Checkpoint, Decoder
from cgconvert.model.device import deterministic, torch_device
from cgconvert.model.tensor_names import TensorNames
from cgconvert.texts.text import Text
from cgconvert.write.journal import source_identity
from cgconvert.write.leftovers import STEP_COUNT, STEPS_KEY
from cgconvert.write.manifest import library_versions
from cgconvert.write.plan import Plan, free_bytes
from cgconvert.write.promise import PROMISE, Promise

__all__ = ["CalibratedPlan", "CalibrationResult"]


@dataclass(frozen=True)
class CalibratedPlan(ABC):
    """A LazyPlan that calibrates the model on a text when it is resolved into a Plan.

    Attributes:
        source: The model.
        output: The path of the artefact.
        text: The calibration text.
        preset: The amount of work.
        requested: The options of the request, which the manifest records.
        device: The device that calibration computes on.
    """

    resolved: ClassVar[bool] = False
    computed_options: ClassVar[tuple[str, ...]] = ("types", "adjusted", "expected_kl", PROMISE)

    source: Checkpoint
    output: Path
    text: Text
    preset: CalibrationPreset
    requested: Mapping[str, Any]
    device: torch.device = field(default_factory=lambda: torch_device("cpu"), kw_only=True)

    @property
    @abstractmethod
    def format(self) -> str:
        """The name of the artefact's format."""

    @property
    def steps(self) -> int:
        """See LazyPlan: sensitivities and the fit."""
        return 2

    @property
    @abstractmethod
    def limit(self) -> int:
        """The largest size in bytes that the artefact can have."""

    @property
    @abstractmethod
    def is_folder(self) -> bool:
        """Whether the artefact is a folder; if not, it is a single file."""

    @property
    def options(self) -> Mapping[str, Any]:
        """The options of the request for the manifest, in the order of the manifest."""
        return {
            **self.requested,
            "effort": self.preset.name,
            "calibration": {
                "text": self.text.name,
                "sha256": self.text.sha256,
                "windows": self.calibration_set.sha256,
                "device": self.device.type,
            },
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """See LazyPlan."""
        return ()

    @property
    def chooses_types(self) -> bool:
        """Tell whether the types of the matrices are chosen by sensitivities."""
        return False

    @abstractmethod
    def resolve(self, folder: Path, progress: Progress) -> Plan:
        """Calibrate the model and return the plan of its artefact; see LazyPlan."""

    @cached_property
    def calibration_set(self) -> CalibrationSet:
        """The windows of the text. Raises InputError if the text is too short."""
        ids = self.text.ids(self.source.tokenizer)
        return CalibrationSet.sample(ids, self.source.geometry, self.text.name, self.preset)

    @property
    def nbytes(self) -> int:
        """The largest disk space needed, in bytes.

        It is the sum of the artefact, as much again for the completed steps, the hidden states of
        both models before a layer, and the hidden states of the source before every layer, which
        the measurement of sensitivities stores.
        """
        g, windows = self.source.geometry, self.calibration_set
        state_tokens = 2 * windows.token_count + g.n_layer * self._sensitivity_tokens
        return 2 * self.limit + 4 * g.n_embd * state_tokens

    @property
    def _sensitivity_tokens(self) -> int:
        """The largest number of tokens that sensitivities are measured on."""
        windows = self.calibration_set
        return min(SENSITIVITY_WINDOWS * windows.length, windows.token_count)

    @property
    @abstractmethod
    def type(self) -> str:
        """The name of the artefact's type."""

    @property
    @abstractmethod
    def matrices(self) -> str:
        """What is known of the types of the matrices, in words."""

    @property
    @abstractmethod
    def timed_codec(self) -> BlockCodec:
        """The type whose search is timed for an estimate: that of most matrices."""

    @property
    @abstractmethod
    def candidates(self) -> int:
        """The number of types that each matrix can have."""

    def describe(self) -> str:
        """See LazyPlan: the target, the text, and what calibration needs, with the time for it."""
        windows = self.calibration_set
        work = self.work()
        measurements = Measurements(
            work.geometry, self.timed_codec, self.device, min(windows.length, 256)
        )
        with deterministic(self.device):
            seconds = measurements.calibration_seconds(work)
        fast_seconds = rounding_seconds(self.timed_codec, work.weights)
        return (
            f"path:  {self.output}\n"
            f"type:  {self.format} {self.type} ({self.matrices})\n"
            f"size:  at most {format_bytes(self.limit)}\n"
            f"text:  {self.text.name}: {len(windows.train)} windows of {windows.length} tokens to "
            f"fit to, {len(windows.validation)} to judge by\n"
            f"needs: about {format_bytes(work.peak_memory())} of memory, "
            f"{format_bytes(self.nbytes)} of disk until it is complete "
            f"({format_bytes(free_bytes(self.output))} free)\n"
            f"time:  {duration_range(seconds)}, by a second of its work on this machine; "
            f'without the text, by `effort="fast"`: {duration_range(fast_seconds)}'
        )

    def work(self) -> Work:
        """Return the amount of work of this calibration."""
        return Work(
            geometry=self.source.geometry,
            length=self.calibration_set.length,
            tokens=self.calibration_set.token_count,
            sensitivity_tokens=self._sensitivity_tokens,
            sweeps=self.preset.sweeps,
            candidates=self.candidates if self.chooses_types else 0,
        )

    def describe_tensors(self) -> tuple[str, ...]:
        """See LazyPlan: the types are chosen while the model is calibrated."""
        return ()

    @cached_property
    def steps_key(self) -> str:
        """See LazyPlan: steps belong to a source, text, preset, format, device and libraries."""
        preset = {
            "name": self.preset.name, "fitted": self.preset.train,
            "held_out": self.preset.validation, "sweeps": self.preset.sweeps,
            "length": self.preset.length,
        }  # fmt: skip
        identity = [
            library_versions(), source_identity(self.source), self.calibration_set.sha256, preset,
            self.source.geometry.as_dict(), self.format, self.device.type,
        ]  # fmt: skip
        return key_of(identity)

    def claim(self, folder: Path) -> CalibrationSet:
        """Prepare `folder` for the steps of this calibration and return the calibration set.

        Steps in the folder stay if they have the same key; otherwise the folder is emptied.
        """
        key_file = folder / STEPS_KEY
        if not key_file.is_file() or read_bytes(key_file) != self.steps_key.encode():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            key_file.write_text(self.steps_key, encoding="utf-8")
            (folder / STEP_COUNT).write_text(str(self.step_count), encoding="utf-8")
        return self.calibration_set

    @property
    def step_count(self) -> int:
        """The number of steps whose results are stored: layers, embedding, head, sensitivities."""
        return self.source.geometry.n_layer + 2 + (1 if self.chooses_types else 0)

    def manifest_options(self, result: CalibrationResult) -> dict[str, Any]:
        """List the options for the manifest: those requested, and the result of calibration."""
        options = {
            **self.options,
            "types": dict(result.types),
            "adjusted": list(result.adjusted),
            PROMISE: result.promise.manifest_entry(),
        }
        if result.expected_kl is not None:
            options["expected_kl"] = float(f"{result.expected_kl:.3g}")
        return options


@dataclass(frozen=True)
class CalibrationResult:
    """A calibrated model.

    Attributes:
        checkpoint: The model with quantized matrices and adjusted biases.
        types: The type of each matrix by its name in the format, in the order of the model.
        adjusted: The names in the format of the vectors that calibration changed.
        expected_kl: The expected mean KL divergence from the source, in nats per token; None if no
            types were chosen.
        promise: The loss that was measured on validation windows.
    """

    checkpoint: Checkpoint
    types: Mapping[str, str]
    adjusted: tuple[str, ...]
    expected_kl: float | None
    promise: Promise

    @classmethod
    def from_decoder(
        cls,
        source: Checkpoint,
        calibrated: Decoder,
        types: Mapping[str, str],
        names: TensorNames,
        expected_kl: float | None,
        promise: Promise,
    ) -> CalibrationResult:
        """Make the result from the calibrated decoder of `source`, for a format with `names`."""
        return cls(
            checkpoint=replace(source, decoder=calibrated),
            types=types,
            adjusted=_adjusted_vectors(source.decoder, calibrated, names),
            expected_kl=expected_kl,
            promise=promise,
        )


def _adjusted_vectors(source: Decoder, calibrated: Decoder, names: TensorNames) -> tuple[str, ...]:
    """List the names of the tensors that calibration changed without quantizing them."""
    owners: list[tuple[int | None, object, object]] = [
        (i, *pair) for i, pair in enumerate(zip(source.layers, calibrated.layers, strict=True))
    ]
    owners.append((None, source, calibrated))
    changed = []
    for layer, before, after in owners:
        for part in names.model if layer is None else names.layer:
            tensor = getattr(after, part)
            if tensor is not getattr(before, part) and not isinstance(tensor, QuantizedTensor):
                changed.append(names.name(part, layer))
    return tuple(changed)
