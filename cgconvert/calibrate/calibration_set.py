"""The windows of text that a model is calibrated on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cgconvert.calibrate.preset import CalibrationPreset
from cgconvert.errors import InputError
from cgconvert.model.decoder import Geometry

__all__ = ["CalibrationSet"]

LEAST_WINDOWS = 5
"""Windows that are the least to calibrate with; one in five validates."""

STATES, STATE_BYTES = 4, 4 << 29
"""Hidden states of all windows that a layer keeps, and the memory they may take, in bytes."""


@dataclass(frozen=True)
class CalibrationSet:
    """Windows of token ids, int64 [windows, T] each; the two have no window in common.

    Weights are fitted to `train`; `validation` only decides whether a fit is kept.
    """

    train: torch.Tensor
    validation: torch.Tensor

    @classmethod
    def sample(
        cls, ids: Sequence[int], geometry: Geometry, text: str, preset: CalibrationPreset
    ) -> CalibrationSet:
        """Draw windows from the token ids of a text; the same ids always give the same windows.

        There are fewer than the preset asks for where the text is short, or the model so wide that
        their hidden states would not fit into memory.

        Raises InputError where the text, named `text`, is too short.
        """
        length = min(preset.length, geometry.n_positions)
        most = STATE_BYTES // (4 * STATES * length * geometry.n_embd)
        count = len(ids) // length
        if count < LEAST_WINDOWS:
            raise InputError(
                f"{text}: {len(ids)} tokens are too few to calibrate with; "
                f'{LEAST_WINDOWS * length} are the least, or give `calibration="none"`'
            )
        windows = torch.tensor(ids[: count * length]).view(count, length)
        order = torch.from_numpy(np.random.default_rng(0).permutation(count))
        asked = preset.train + preset.validation
        chosen = windows[order[: max(LEAST_WINDOWS, min(asked, most))]]
        edge = len(chosen) - min(preset.validation, max(1, len(chosen) // LEAST_WINDOWS))
        return cls(chosen[:edge], chosen[edge:])

    @property
    def length(self) -> int:
        """Tokens in a window."""
        return self.train.shape[1]

    @property
    def tokens(self) -> int:
        """Tokens of all windows."""
        return self.train.numel() + self.validation.numel()

    @property
    def sha256(self) -> str:
        """The hash of all ids and of the split."""
        total = hashlib.sha256(str(self.train.shape).encode())
        for windows in (self.train, self.validation):
            total.update(windows.numpy().tobytes())
        return total.hexdigest()
