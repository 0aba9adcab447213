"""Plans of the conversions, for tests that look at a plan or carry it out themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cgconvert.api.conversions import plan
from cgconvert.model.decoder import Checkpoint
from cgconvert.write.plan import Plan

__all__ = ["quantize", "to_gguf", "to_hf", "to_onnx"]


def to_hf(checkpoint: Checkpoint, output: Path | None = None, **options: Any) -> Plan:
    return plan(checkpoint, "to-hf", output, **options)  # type: ignore[return-value]


def to_onnx(checkpoint: Checkpoint, output: Path | None = None, **options: Any) -> Plan:
    return plan(checkpoint, "to-onnx", output, **options)  # type: ignore[return-value]


def to_gguf(checkpoint: Checkpoint, output: Path | None = None, **options: Any) -> Plan:
    return plan(checkpoint, "to-gguf", output, **options)  # type: ignore[return-value]


def quantize(checkpoint: Checkpoint, output: Path | None = None, **options: Any) -> Any:
    """A plan, or one that has to be computed first."""
    return plan(checkpoint, "quantize", output, **options)
