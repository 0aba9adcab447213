"""A checkpoint, as every reader returns it."""

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
    """A model on the disk. Only headers, configuration and tokenizer have been read.

    Attributes:
        name: The name of the model, after which outputs are named.
        path: The folder or file.
        layout: The layout of the files: torch, safetensors, jaxformer, phi, gguf or onnx.
        config: The contents of the configuration, as read.
        decoder: The model's tensors.
        tokenizer: The model's tokenizer.
        files: All files whose SHA-256 the manifest records, weights first.
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
