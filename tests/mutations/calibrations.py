"""Bugs that lose what calibration gained, in numbers that are right for their type."""

from __future__ import annotations

from pathlib import Path

import torch

from cgconvert.codecs.quantized_tensor import QuantizedTensor
from cgconvert.formats.registry import load
from cgconvert.model.decoder import Checkpoint
from tests.mutations.mutation import CALIBRATED, ONE_LAYER, Mutation
from tests.support.tampering import rewrite_array, stored_arrays

__all__ = ["CALIBRATIONS"]


def _round_anew(artefact: Path, source: Checkpoint) -> None:
    """Replace every calibrated matrix by the source's, rounded to the same type."""
    pairs = load("gguf").stored_artefact(artefact, source.decoder)
    for name, stored in pairs.tensors.items():
        if isinstance(stored, QuantizedTensor):
            rounded = stored.codec.encode_rows(pairs.expected[name].read().float())

            def change(rows: torch.Tensor, rounded: torch.Tensor = rounded) -> None:
                rows.copy_(rounded.view_as(rows))

            rewrite_array(stored_arrays(stored)[0], change)


CALIBRATIONS = (
    Mutation(
        "matrices rounded anew, without the text",
        "calibration",
        CALIBRATED,
        frozenset({"calibration.loss"}),
        files=_round_anew,
        models=ONE_LAYER,
    ),
)
