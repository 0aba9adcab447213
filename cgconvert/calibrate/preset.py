"""How much is done for a calibrated model."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FAST", "PRESETS", "CalibrationPreset"]


@dataclass(frozen=True)
class CalibrationPreset:
    """`fitted` windows of `length` tokens that weights are fitted to and `held_out` that only
    judge; `sweeps` of coordinate descent after error feedback."""

    name: str
    fitted: int
    held_out: int
    sweeps: int
    length: int = 256


FAST = "fast"
"""No text, only the search."""

PRESETS = {
    effort.name: effort
    for effort in (CalibrationPreset("default", 128, 32, 2), CalibrationPreset("max", 512, 64, 4))
}
