"""The presets: how much is done for a calibrated model."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FAST", "PRESETS", "CalibrationPreset"]


@dataclass(frozen=True)
class CalibrationPreset:
    """How much is done for a calibrated model.

    Attributes:
        name: What users choose it by.
        train: Windows that weights are fitted to.
        validation: Windows that only judge.
        sweeps: Sweeps of coordinate descent after GPTQ.
        length: Tokens in a window.
    """

    name: str
    train: int
    validation: int
    sweeps: int
    length: int = 256


FAST = "fast"
"""The choice without a calibration: no text, only the search for the best scales."""

PRESETS = {
    preset.name: preset
    for preset in (CalibrationPreset("default", 128, 32, 2), CalibrationPreset("max", 512, 64, 4))
}
