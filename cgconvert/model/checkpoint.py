"""What every reader returns."""

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
    """A model as found: nothing but headers has been read.

    `name` is what outputs are called after; `layout` says how it is stored (torch, safetensors,
    jaxformer, phi, gguf, onnx); `config` is the raw configuration; `files` are all the files its
    SHA-256 covers, weights first; `origin` says where it came from (Hub revision, archive, step).
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
