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
from typing import TYPE_CHECKING

from cgconvert.errors import InputError, UsageError
from cgconvert.formats.base import OUT, Format, SourceFormat
from cgconvert.io.followed_links import note_user_path

if TYPE_CHECKING:
    from cgconvert.write.manifest import Manifest

__all__ = [
    "FORMATS",
    "OUT",
    "Artefact",
    "artefact_format",
    "find_all",
    "formats",
    "identify",
    "is_source",
    "load",
    "source_format",
]

FORMATS: dict[str, str] = {
    "onnx": "cgconvert.formats.onnx.format:Onnx",
    "huggingface": "cgconvert.formats.huggingface.format:HuggingFace",
    "jaxformer": "cgconvert.formats.jaxformer.format:Jaxformer",
    "gguf": "cgconvert.formats.gguf.format:Gguf",
}
"""Module and class of each format, by the format's name."""


def load(name: str) -> Format:
    """Return the format of this name.

    Raises UsageError if there is none, or if it is only read, as jaxformer is.
    """
    format_ = _make(FORMATS[name]) if name in FORMATS else None
    if not isinstance(format_, Format):
        known = ", ".join(written.name for written in formats())
        raise UsageError(f"nothing here reads {name!r}; there are {known}")
    return format_


def formats() -> list[Format]:
    """Return every format that cgconvert writes."""
    return [format_ for format_ in map(_make, FORMATS.values()) if isinstance(format_, Format)]


def artefact_format(path: Path) -> Format | None:
    """Return the format of the artefact at `path`, None if it is not an artefact."""
    return next((format_ for format_ in formats() if format_.identify(path)), None)


def source_format(path: Path) -> SourceFormat:
    """Return the format of the source at `path`. Raises InputError if no format recognises it."""
    for format_ in map(_make, FORMATS.values()):
        if format_.recognises(path):
            return format_
    from cgconvert.sources.no_model import explain_no_model
    from cgconvert.sources.snapshot import cached_repository

    explanation = explain_no_model(path)
    snapshot = cached_repository(path)
    if snapshot and (not explanation or "no weights" in explanation):
        explanation = f"has no weights; give {snapshot.repository} as the source to download them"
    if explanation:
        raise InputError(f"{path}: {explanation}")
    raise InputError(
        f"{path}: no checkpoint found; expected weights in safetensors or torch files (.bin, .pt, "
        ".pth, .ckpt), a Jaxformer step, a .tar.gz, or one of cgconvert's own outputs"
    )


def is_source(path: Path) -> bool:
    """Return whether any format recognises the source at `path`."""
    return any(format_.recognises(path) for format_ in map(_make, FORMATS.values()))


def _make(class_name: str) -> SourceFormat:
    """Create a format from "module:class"; formats have no state."""
    format_: SourceFormat = resolve_name(class_name)()
    return format_


@dataclass(frozen=True)
class Artefact:
    """A recognised artefact: its path, its format's name, and its manifest if it has one."""

    path: Path
    format: str
    manifest: Manifest | None

    @property
    def type(self) -> str:
        """The name of its type. Raises InputError if the headers are broken."""
        return load(self.format).stored_type(self.path)

    @property
    def bounds_type(self) -> str:
        """The type in which most bytes are stored, whose bounds hold. Raises as `type`."""
        return load(self.format).bounds_type(self.path)

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.manifest.name if self.manifest else self.path.stem


def identify(path: Path) -> Artefact:
    """Recognise the artefact at `path` by its file names. Raises InputError if it is not one.

    A path in an artefact, such as that of its only graph, stands for the artefact.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    note_user_path(path)
    format_ = artefact_format(path)
    if format_ is None:
        raise InputError(
            f"{path}: not an artefact; expected a folder that to-hf or to-onnx wrote, or a .gguf"
        )
    artefacts = format_.artefacts(path)
    return _artefact(artefacts[0] if len(artefacts) == 1 else path, format_)


def _artefact(path: Path, format_: Format) -> Artefact:
    from cgconvert.write.manifest import find_manifest

    if path.is_dir():
        note_user_path(path)
    return Artefact(path, format_.name, find_manifest(path))


def find_all(folder: Path) -> list[Artefact]:
    """Find every artefact below a folder, or the folder itself, sorted by path.

    Hidden files and folders are left out, and links to folders are not followed.
    """
    artefacts: list[Artefact] = []
    for parent, folders, files in os.walk(folder):
        if (format_ := artefact_format(Path(parent))) is not None:
            artefacts += [_artefact(path, format_) for path in format_.artefacts(Path(parent))]
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(parent, name) for name in files if not name.startswith(".")]
        artefacts += [identify(path) for path in paths if artefact_format(path) is not None]
    return sorted(artefacts, key=lambda artefact: artefact.path)
