"""Plan a requested quantization: from the weights only, or calibrated on a text."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgconvert.calibrate.budget import Budget, in_bytes, standard_sizes, type_name
from cgconvert.calibrate.presets import FAST, PRESETS
from cgconvert.calibrate.rounded_plan import RoundedPlan
from cgconvert.errors import InputError, UsageError
from cgconvert.formats.gguf import writer as gguf
from cgconvert.formats.gguf.imatrix import read_imatrix
from cgconvert.formats.gguf.type_choices import QUANTIZED_TYPES
from cgconvert.formats.onnx import writer as onnx
from cgconvert.io.progress import format_bytes
from cgconvert.model.decoder import Checkpoint, Geometry
from cgconvert.model.device import check_device_name, torch_device
from cgconvert.texts.text import STDLIB, Text, read_text
from cgconvert.write.manifest import manifest_path
from cgconvert.write.plan import LazyPlan

__all__ = ["NO_TEXT", "default_4bit_type", "quantize_gguf", "quantize_onnx"]

NO_TEXT = "none"
"""The word in place of a calibration text that means: quantize by the weights alone."""

UNCALIBRATED_TYPE = "Q8_0"
"""The file type of 8 bits. It is never calibrated, because its loss is tiny without a text too."""


def quantize_gguf(
    checkpoint: Checkpoint,
    output: Path | None,
    budget: Budget,
    effort: str,
    calibration: str | None,
    requested: Mapping[str, Any],
    device: str = "auto",
    imatrix: Path | None = None,
    save_imatrix: Path | None = None,
) -> LazyPlan:
    """Plan a quantized GGUF file, calibrated on a text or not.

    Args:
        checkpoint: The model.
        output: The file or folder to write; None for the default name.
        budget: The limit that the file has to keep.
        effort: FAST or the name of a preset.
        calibration: The name or path of a text, NO_TEXT, or None for the default text.
        requested: The options of the request, which the manifest of a calibrated file records.
        device: One of model.device.DEVICES.
        imatrix: An imatrix file whose importance is used instead of a text.
        save_imatrix: The path to which the importance matrix of the text is written.

    Raises:
        UsageError: The arguments cannot be used together.
        InputError: A text or an imatrix cannot be read.
    """
    if budget.mix is not None and budget.mix not in QUANTIZED_TYPES:
        raise UsageError(f"type {budget.mix!r} is not one of {', '.join(QUANTIZED_TYPES)}")
    if imatrix is not None:
        if calibration not in (None, NO_TEXT) or effort == "max" or save_imatrix is not None:
            raise UsageError(
                "`imatrix` stands in place of a text: leave out `calibration`, `effort` and "
                "`save_imatrix`"
            )
        calibration = NO_TEXT
    text = _calibration_text(budget.mix, effort, calibration)
    _check_device(device, text)
    if text is None:
        if save_imatrix is not None:
            raise UsageError("`save_imatrix` is collected from a text, and none is read here")
        type_ = _uncalibrated_type(checkpoint, budget)
        importance = read_imatrix(imatrix, checkpoint.decoder) if imatrix else None
        name = gguf.type_name(checkpoint, type_, budget.fixed)
        path = gguf.output_path(checkpoint, output, name)
        plan = gguf.plan(checkpoint, path, type=type_, fixed=budget.fixed, importance=importance)
        return RoundedPlan(**vars(plan))
    name = type_name(checkpoint, in_bytes(budget, checkpoint))
    path = gguf.output_path(checkpoint, output, name)
    if save_imatrix is not None:
        _check_place(save_imatrix, path, checkpoint)
    fixed = {"tensor_type": dict(budget.fixed)} if budget.fixed else {}
    # Not imported at the top: it brings torch, without which weights can be planned to be rounded.
    from cgconvert.calibrate.gguf import CalibratedGGUF

    return CalibratedGGUF(
        checkpoint, path, text, PRESETS[effort], {**requested, **fixed},
        budget=budget, save_imatrix=save_imatrix, device=torch_device(device),
    )  # fmt: skip


def _check_place(save_imatrix: Path, output: Path, checkpoint: Checkpoint) -> None:
    """Raise UsageError if an imatrix cannot be written to this place.

    It is that of the output or its manifest, or something other than an imatrix lies there.
    """
    if os.path.realpath(save_imatrix) in map(os.path.realpath, (output, manifest_path(output))):
        raise UsageError(
            f"{save_imatrix}: is where the artefact will lie; choose another `save_imatrix`"
        )
    if os.path.lexists(save_imatrix):
        try:
            read_imatrix(save_imatrix, checkpoint.decoder)
        except InputError as error:
            raise UsageError(
                f"{save_imatrix}: exists and is no imatrix of this model; choose another "
                "`save_imatrix`"
            ) from error


def quantize_onnx(
    checkpoint: Checkpoint,
    output: Path | None,
    bits: int,
    effort: str,
    calibration: str | None,
    block_options: dict[str, Any],
    device: str = "auto",
) -> LazyPlan:
    """Plan an ONNX folder of 4 or 8 bits.

    8 bits are always rounded from the weights, without a text; `effort` then has no effect. 4 bits
    are calibrated on a text unless `effort` is FAST or `calibration` is NO_TEXT.

    Args:
        checkpoint: The model.
        output: The folder to write; None for the default name.
        bits: 4 or 8.
        effort: FAST or the name of a preset.
        calibration: The name or path of a text, NO_TEXT, or None for the default text.
        block_options: block_size, symmetric and accuracy_level of api.to_onnx, if they differ from
            their defaults.
        device: One of model.device.DEVICES.

    Raises:
        UsageError: `effort` is unknown; a text is named and none would be used; `effort` is "max"
            and `calibration` is NO_TEXT (4 bits); or `device` is "cuda" without a text.
        InputError: The text cannot be read.
    """
    text = _calibration_text(UNCALIBRATED_TYPE if bits == 8 else None, effort, calibration)
    _check_device(device, text)
    path = output or onnx.default_path(checkpoint, bits=bits)
    if text is None:
        return RoundedPlan(**vars(onnx.plan(checkpoint, path, bits=bits, **block_options)))
    from cgconvert.calibrate.onnx import CalibratedONNX

    return CalibratedONNX(
        checkpoint, path, text, PRESETS[effort], {},
        block_options=block_options, device=torch_device(device),
    )  # fmt: skip


def default_4bit_type(geometry: Geometry) -> str:
    """Return the usual file type of 4 bits: Q4_K_M, or Q4_0 if rows are not whole blocks of 256."""
    return "Q4_K_M" if geometry.n_embd % 256 == 0 else "Q4_0"


def _calibration_text(mix: str | None, effort: str, calibration: str | None) -> Text | None:
    """Read the text to calibrate on; None if only the weights are used.

    Args:
        mix: The file type of which all matrices will be; None if types are chosen.
        effort: FAST or the name of a preset.
        calibration: The name or path of a text, NO_TEXT, or None for the default text.

    Raises UsageError if `mix`, `effort` and `calibration` cannot be used together.
    """
    names_text = calibration not in (None, NO_TEXT)
    if effort != FAST and effort not in PRESETS:
        raise UsageError(f"effort {effort!r} is not one of {FAST}, {', '.join(PRESETS)}")
    if mix == UNCALIBRATED_TYPE:
        if names_text:
            raise UsageError("8 bits are rounded, not calibrated: leave out `calibration`")
        return None
    if effort == FAST and names_text:
        raise UsageError('`effort="fast"` takes no text: leave out `calibration`, or `effort`')
    if effort == "max" and calibration == NO_TEXT:
        raise UsageError(
            '`effort="max"` fits to a text: leave out `calibration="none"`, or `effort`'
        )
    if effort == FAST or calibration == NO_TEXT:
        return None
    return read_text(calibration or STDLIB, "calibration")


def _check_device(name: str, text: Text | None) -> None:
    """Raise UsageError for a GPU if there is no text."""
    if name not in ("auto", "cpu") and text is None:
        check_device_name(name)
        raise UsageError(f'device {name}: only calibration runs there; use `device="auto"`')


def _uncalibrated_type(checkpoint: Checkpoint, budget: Budget) -> str:
    """Return the requested file type, or the largest standard one that fits the budget.

    Raises UsageError if no type fits, or if the budget is a loss, which only a text can measure.
    """
    if budget.kl is not None:
        raise UsageError("`max_kl` is measured on a text: leave out `effort` and `calibration`")
    if budget.mix or budget.like:
        return budget.mix or budget.like or ""
    if budget.nbytes is not None:
        limit = budget.nbytes
    else:
        limit = int((budget.bpw or 0) * checkpoint.geometry.parameters / 8)
    sizes = standard_sizes(checkpoint)
    fitting = [type_ for type_, nbytes in sizes.items() if nbytes <= limit]
    if not fitting:
        least = format_bytes(min(sizes.values()), round_up=True)
        raise UsageError(f"no type is that small: the least is {least}")
    return fitting[-1]
