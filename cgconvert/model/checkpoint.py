"""A checkpoint: the model that every reader returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cgconvert.model.decoder import Decoder, Geometry
from cgconvert.model.tokenizer import Tokenizer

__all__ = ["Checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """A model on the disk, of which only headers have been read.

    Attributes:
        name: What outputs are named after.
        path: The folder or file.
        layout: How it is stored: torch, safetensors, jaxformer, phi, gguf or onnx.
        config: The raw configuration.
        decoder: The model's tensors.
        tokenizer: The model's tokenizer.
        files: All files that its SHA-256 covers, weights first.
        origin: Where it came from (Hub revision, archive, training step).
    """

    name: str
    path: Path
    layout: str
    config: Mapping[str, Any]
    decoder: Decoder
    tokenizer: Tokenizer
    files: tuple[Path, ...]
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def geometry(self) -> Geometry:
        return self.decoder.geometry
