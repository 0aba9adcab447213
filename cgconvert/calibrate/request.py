"""How a model becomes a quantized GGUF: by its weights alone, or fitted to a text first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cgconvert.calibrate.gguf import Budget
from cgconvert.calibrate.plans import CalibratedGGUF, CalibratedONNX, standard_sizes
from cgconvert.calibrate.preset import FAST, PRESETS
from cgconvert.codecs.plain import Plain
from cgconvert.errors import UsageError
from cgconvert.formats.gguf import writer as gguf
from cgconvert.formats.gguf.imatrix_file import read_imatrix
from cgconvert.formats.gguf.types import TYPES
from cgconvert.formats.onnx import writer as onnx
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.model.decoder import Geometry
from cgconvert.model.device import torch_device
from cgconvert.texts.text import STDLIB, Text, read_text
from cgconvert.write.plan import LazyPlan, Plan

__all__ = ["NO_TEXT", "QUANTIZED", "quantize_gguf", "quantize_onnx", "standard"]

NO_TEXT = "none"
"""In place of a calibration text: only the search."""

ROUNDED = "Q8_0"
"""Has nothing to gain from a text."""

QUANTIZED = tuple(name for name, kind in TYPES.items() if not isinstance(kind.encoding, Plain))
"""File types that `quantize` makes."""


def quantize_gguf(
    checkpoint: Checkpoint,
    output: Path | None,
    budget: Budget,
    effort: str,
    calibration: str | None,
    asked: Mapping[str, Any],
    device: str = "auto",
    imatrix: Path | None = None,
    save: Path | None = None,
) -> Plan | LazyPlan:
    """See api.quantize; `asked` goes into the manifest."""
    if budget.mix is not None and budget.mix not in QUANTIZED:
        raise UsageError(f"type {budget.mix!r} is not one of {', '.join(QUANTIZED)}")
    if imatrix is not None:
        if calibration not in (None, NO_TEXT) or effort == "max" or save is not None:
            raise UsageError(
                "--imatrix stands in place of a text: leave out --calibration, --effort and "
                "--save-imatrix"
            )
        calibration = NO_TEXT
    text = _calibration(budget, effort, calibration)
    where = _device(device, text)
    if text is None:
        if save is not None:
            raise UsageError("--save-imatrix is collected from a text, and none is read here")
        kind = _search_only(checkpoint, budget)
        importance = read_imatrix(imatrix, checkpoint.decoder) if imatrix else None
        path = gguf.output_path(checkpoint, output, kind)
        return gguf.plan(checkpoint, path, type=kind, fixed=budget.fixed, importance=importance)
    path = gguf.output_path(checkpoint, output, _called(budget))
    own = {"tensor_type": dict(budget.fixed)} if budget.fixed else {}
    told = {**asked, **own}
    return CalibratedGGUF(
        checkpoint, path, text, PRESETS[effort], told, budget=budget, save=save, device=where
    )


def quantize_onnx(
    checkpoint: Checkpoint,
    output: Path | None,
    bits: int,
    effort: str,
    calibration: str | None,
    blocks: dict[str, Any],
    device: str = "auto",
) -> Plan | LazyPlan:
    """8 bits are rounded, 4 are fitted. See api.to_onnx for `blocks`."""
    text = _calibration(Budget(mix=ROUNDED if bits == 8 else None), effort, calibration)
    where = _device(device, text)
    path = output or onnx.default_path(checkpoint, bits=bits)
    if text is None:
        return onnx.plan(checkpoint, path, bits=bits, **blocks)
    return CalibratedONNX(checkpoint, path, text, PRESETS[effort], {}, blocks=blocks, device=where)


def standard(geometry: Geometry) -> str:
    """What users take at 4 bits; smaller blocks where rows do not divide into those of 256."""
    return "Q4_K_M" if geometry.n_embd % 256 == 0 else "Q4_0"


def _calibration(budget: Budget, effort: str, given: str | None) -> Text | None:
    """The text to calibrate with. Raises UsageError where there is none to be."""
    if effort != FAST and effort not in PRESETS:
        raise UsageError(f"effort {effort!r} is not one of {FAST}, {', '.join(PRESETS)}")
    if budget.mix is not None and budget.mix == ROUNDED:
        if given not in (None, NO_TEXT):
            raise UsageError("8 bits are rounded, not calibrated: leave out --calibration")
        return None
    if effort == FAST and given not in (None, NO_TEXT):
        raise UsageError(f"--effort {FAST} takes no text: leave out --calibration, or --effort")
    if effort == "max" and given == NO_TEXT:
        raise UsageError("--effort max fits to a text: leave out --calibration none, or --effort")
    if effort == FAST or given == NO_TEXT:
        return None
    return read_text(given or STDLIB, "calibration")


def _device(asked: str, text: Text | None) -> torch.device:
    """Where a text is fitted to. Raises UsageError where cuda is asked for and of no use."""
    if asked == "cuda" and text is None:
        raise UsageError("device cuda: only what is fitted to a text runs there; use --device auto")
    return torch_device(asked)


def _search_only(checkpoint: Checkpoint, budget: Budget) -> str:
    """The file type: the one that was asked for, or the largest standard one that fits."""
    if budget.kl is not None:
        raise UsageError("--max-kl is measured on a text: leave out --effort and --calibration")
    if budget.mix or budget.like:
        return budget.mix or budget.like or ""
    g = checkpoint.geometry
    limit = (
        budget.nbytes if budget.nbytes is not None else int((budget.bpw or 0) * g.parameters / 8)
    )
    sizes = standard_sizes(checkpoint)
    fits = [kind for kind, nbytes in sizes.items() if nbytes <= limit]
    if not fits:
        raise UsageError(f"no type is that small: the least is {min(sizes.values())} bytes")
    return fits[-1]


def _called(budget: Budget) -> str:
    """What stands for the type in a file's name."""
    if budget.nbytes is not None:
        unit, size = ("GB", 10**9) if budget.nbytes >= 10**9 else ("MB", 10**6)
        return f"{budget.nbytes / size:.4g}{unit}"
    if budget.bpw is not None:
        return f"{budget.bpw:g}bpw"
    return f"kl{budget.kl:g}" if budget.kl is not None else budget.mix or budget.like or ""
