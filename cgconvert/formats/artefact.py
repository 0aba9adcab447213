"""Recognise artefacts: folders and files that cgconvert writes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cgconvert.errors import InputError
from cgconvert.formats.base import OUT
from cgconvert.formats.registry import artefact_format, load
from cgconvert.write.manifest import Manifest, find_manifest

__all__ = ["OUT", "Artefact", "find_all", "identify"]


@dataclass(frozen=True)
class Artefact:
    """The folder or file of an artefact, its format's name, and its manifest if it has one."""

    path: Path
    format: str
    manifest: Manifest | None

    @property
    def type(self) -> str:
        """The type of most of its bytes. Raises InputError where its headers are broken."""
        return load(self.format).stored_type(self.path)

    @property
    def name(self) -> str:
        """The name of the model in it."""
        return self.manifest.name if self.manifest else self.path.stem


def identify(path: Path) -> Artefact:
    """Tell an artefact's format from its files. Raises InputError where it is none."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    format_ = artefact_format(path)
    if format_ is None:
        raise InputError(
            f"{path}: not an artefact; expected a folder that to-hf or to-onnx wrote, or a .gguf"
        )
    return Artefact(path, format_.name, find_manifest(path))


def find_all(folder: Path) -> list[Artefact]:
    """Every artefact below a folder (or the folder itself), in order of its path."""
    artefacts: list[Artefact] = []
    for place, folders, files in os.walk(folder):  # which follows no links to folders
        if artefact_format(Path(place)) is not None:
            artefacts.append(identify(Path(place)))
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(place, name) for name in files if not name.startswith(".")]
        artefacts += [identify(path) for path in paths if artefact_format(path) is not None]
    return sorted(artefacts, key=lambda artefact: artefact.path)
