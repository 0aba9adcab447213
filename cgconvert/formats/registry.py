"""The table of formats, one line each, and the search for the format of a file or folder.

A format's code is imported when it is first needed. The order of the table is the order of
precedence if a folder could be of several formats: an ONNX repository may have weights for
transformers beside its graph.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name

from cgconvert.errors import InputError, UsageError
from cgconvert.formats.base import OUT, Format, SourceFormat
from cgconvert.write.manifest import Manifest, find_manifest

__all__ = [
    "FORMATS",
    "OUT",
    "Artefact",
    "artefact_format",
    "find_all",
    "formats",
    "identify",
    "load",
    "source_format",
]

FORMATS: dict[str, str] = {
    "onnx": "cgconvert.formats.onnx.format:Onnx",
    "huggingface": "cgconvert.formats.huggingface.format:HuggingFace",
    "jaxformer": "cgconvert.formats.jaxformer:Jaxformer",
    "gguf": "cgconvert.formats.gguf.format:Gguf",
}
"""Module and class of each format by its name."""


def load(name: str) -> Format:
    """The format of this name. Raises UsageError where there is none that is written."""
    format_ = _make(FORMATS[name]) if name in FORMATS else None
    if not isinstance(format_, Format):
        known = ", ".join(known.name for known in formats())
        raise UsageError(f"nothing here reads {name!r}; there are {known}")
    return format_


def formats() -> list[Format]:
    """Every format that artefacts are written in."""
    return [format_ for format_ in map(_make, FORMATS.values()) if isinstance(format_, Format)]


def artefact_format(path: Path) -> Format | None:
    """The format of the artefact at `path`, None where it is none."""
    return next((format_ for format_ in formats() if format_.identify(path)), None)


def source_format(path: Path) -> SourceFormat:
    """The format of the source at `path`. Raises InputError where nothing known is there."""
    for format_ in map(_make, FORMATS.values()):
        if format_.recognises(path):
            return format_
    raise InputError(
        f"{path}: no checkpoint found; expected pytorch_model.bin, model.safetensors (or their "
        "index), a Jaxformer step, a .tar.gz, or one of cgconvert's own outputs"
    )


def _make(class_name: str) -> SourceFormat:
    """The one object of a format's class; it has no state."""
    format_: SourceFormat = resolve_name(class_name)()
    return format_


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
