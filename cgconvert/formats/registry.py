"""The table of formats: one line each. A format's code is imported when it is first needed.

Its order is the order of precedence where a folder could be of several: an ONNX repository may
have weights for transformers beside its graph.
"""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name

from cgconvert.errors import InputError, UsageError
from cgconvert.formats.base import Format, SourceFormat

__all__ = ["FORMATS", "artefact_format", "formats", "load", "source_format"]

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
