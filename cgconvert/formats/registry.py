"""The table of formats: one line each. A format's code is imported when it is first needed.

Its order is the order of precedence where a folder could be of several: an ONNX repository may
have weights for transformers beside its graph.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

from cgconvert.errors import InputError, UsageError
from cgconvert.formats.base import Format, SourceFormat

__all__ = ["FORMATS", "Entry", "artefact_format", "formats", "load", "source_format"]


@dataclass(frozen=True)
class Entry:
    """Where the class of a format is: a module, and the class's name in it."""

    module: str
    name: str

    def load(self) -> SourceFormat:
        """Import the class and make its one object, which has no state."""
        format_: SourceFormat = getattr(importlib.import_module(self.module), self.name)()
        return format_


FORMATS: dict[str, Entry] = {
    "onnx": Entry("cgconvert.formats.onnx.format", "Onnx"),
    "huggingface": Entry("cgconvert.formats.huggingface.format", "HuggingFace"),
    "jaxformer": Entry("cgconvert.formats.jaxformer", "Jaxformer"),
    "gguf": Entry("cgconvert.formats.gguf.format", "Gguf"),
}


def load(name: str) -> Format:
    """The format of this name. Raises UsageError where there is none that is written."""
    format_ = FORMATS[name].load() if name in FORMATS else None
    if not isinstance(format_, Format):
        known = ", ".join(known.name for known in formats())
        raise UsageError(f"nothing here reads {name!r}; there are {known}")
    return format_


def formats() -> list[Format]:
    """Every format that artefacts are written in."""
    loaded = (entry.load() for entry in FORMATS.values())
    return [format_ for format_ in loaded if isinstance(format_, Format)]


def artefact_format(path: Path) -> Format | None:
    """The format of the artefact at `path`, None where it is none."""
    return next((format_ for format_ in formats() if format_.identify(path)), None)


def source_format(path: Path) -> SourceFormat:
    """The format of the source at `path`. Raises InputError where nothing known is there."""
    for entry in FORMATS.values():
        format_ = entry.load()
        if format_.recognises(path):
            return format_
    raise InputError(
        f"{path}: no checkpoint found; expected pytorch_model.bin, model.safetensors (or their "
        "index), a Jaxformer step, a .tar.gz, or one of cgconvert's own outputs"
    )
