"""What a conversion returns: the artefact that was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgconvert.write.manifest import Manifest

__all__ = ["Result"]


@dataclass(frozen=True)
class Result:
    """An artefact that was written.

    Attributes:
        path: The folder, or the one file of a GGUF.
        manifest: What it was made from, with which options, and the SHA-256 of every file; the
            same is written to `cgconvert.json` in the folder or beside the file.
    """

    path: Path
    manifest: Manifest

    @property
    def format(self) -> str:
        """Name of the format: huggingface, onnx, gguf or one that was registered."""
        return self.manifest.format

    @property
    def type(self) -> str:
        """Stored type of the matrices, such as float16, int4 or Q4_K_M."""
        return self.manifest.type

    @property
    def types(self) -> Mapping[str, str]:
        """Type chosen for each matrix, by the name of its tensor; empty where all have `type`."""
        types: Mapping[str, str] = self.manifest.options.get("types", {})
        return types

    @property
    def options(self) -> Mapping[str, Any]:
        """Options of the conversion as the manifest has them."""
        return self.manifest.options

    @property
    def bytes(self) -> int:
        """Bytes of all files, the manifest apart."""
        return sum(int(entry["bytes"]) for entry in self.manifest.files.values())

    def __fspath__(self) -> str:
        """Return the path: a result can be passed wherever a path can, as in `verify(result)`."""
        return str(self.path)
