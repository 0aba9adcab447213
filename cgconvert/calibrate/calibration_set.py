"""The text windows that a model is calibrated on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cgconvert.calibrate.presets import CalibrationPreset
from cgconvert.errors import InputError
from cgconvert.lazy import torch
from cgconvert.model.decoder import Geometry

__all__ = ["CalibrationSet"]

MIN_WINDOWS = 5
"""The smallest number of windows to calibrate with. One window in five at most is for validation.
"""

STATE_COPIES, MAX_STATE_BYTES = 4, 4 << 29
"""Copies of the hidden states of all windows that are in memory while a layer is quantized, and the
bytes that they may take together."""


@dataclass(frozen=True)
class CalibrationSet:
    """The windows of token ids that a model is calibrated on.

    Attributes:
        train: The windows that weights are fitted to, int64 [windows, T].
        validation: The windows that only decide whether a fit is accepted, int64 [windows, T]. None
            of them is in `train`.
    """

    train: torch.Tensor
    validation: torch.Tensor

    @classmethod
    def sample(
        cls, ids: Sequence[int], geometry: Geometry, text_name: str, preset: CalibrationPreset
    ) -> CalibrationSet:
        """Draw windows from the token ids of a text; the same ids always give the same windows.

        There are fewer windows than the preset says if the text is too short for them, or if the
        model is so wide that their hidden states would not fit into memory.

        Raises InputError, which names `text_name`, if the text is too short to calibrate with.
        """
        length = min(preset.length, geometry.n_positions)
        max_windows = MAX_STATE_BYTES // (4 * STATE_COPIES * length * geometry.n_embd)
        count = len(ids) // length
        if count < MIN_WINDOWS:
            raise InputError(
                f"{text_name}: {len(ids)} tokens are too few to calibrate with; "
                f'{MIN_WINDOWS * length} are the least, or give `calibration="none"`'
            )
        windows = torch.tensor(ids[: count * length]).view(count, length)
        order = torch.from_numpy(np.random.default_rng(0).permutation(count))
        preset_windows = preset.train + preset.validation
        drawn = windows[order[: max(MIN_WINDOWS, min(preset_windows, max_windows))]]
        validation_windows = min(preset.validation, max(1, len(drawn) // MIN_WINDOWS))
        train_windows = len(drawn) - validation_windows
        return cls(drawn[:train_windows], drawn[train_windows:])

    @property
    def length(self) -> int:
        """The number of tokens in a window."""
        return self.train.shape[1]

    @property
    def token_count(self) -> int:
        """The number of tokens in all windows."""
        return self.train.numel() + self.validation.numel()

    @property
    def sha256(self) -> str:
        """The hash of all ids and of their split into training and validation windows."""
        digest = hashlib.sha256(str(self.train.shape).encode())
        for windows in (self.train, self.validation):
            digest.update(windows.numpy().tobytes())
        return digest.hexdigest()
