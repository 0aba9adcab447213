"""The presets of calibration, which say how much work it does, by the names that users choose."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FAST", "PRESETS", "CalibrationPreset"]

FAST = "fast"
"""The effort that uses no calibration text, only the search for the best scales."""


@dataclass(frozen=True)
class CalibrationPreset:
    """The amount of work that a calibration does.

    Attributes:
        name: The name by which users choose it.
        train: The number of windows that weights are fitted to.
        validation: The number of windows that only decide whether a fit is accepted.
        sweeps: The number of sweeps of coordinate descent after GPTQ.
        length: The number of tokens in a window.
    """

    name: str
    train: int
    validation: int
    sweeps: int
    length: int = 256


PRESETS = {
    preset.name: preset
    for preset in (CalibrationPreset("default", 128, 32, 2), CalibrationPreset("max", 512, 64, 4))
}
"""The presets by their names."""
