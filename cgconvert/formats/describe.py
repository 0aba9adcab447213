"""Describe a checkpoint or an artefact, as `inspect` shows it, from headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cgconvert.formats.base import TensorLine, bytes_by_type
from cgconvert.formats.read import find_source
from cgconvert.formats.read_options import ReadOptions
from cgconvert.model.decoder import Geometry
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.write.manifest import find_manifest

__all__ = ["Description", "TensorLine", "describe"]

SCHEMA = 1


@dataclass(frozen=True)
class Description:
    """A checkpoint or an artefact as its headers describe it.

    `types` counts stored bytes by type; `provenance` is the manifest's account of where an
    artefact came from, or how a checkpoint was found.
    """

    path: str
    name: str
    layout: str
    geometry: Mapping[str, Any]
    parameters: int
    tokenizer: Mapping[str, Any]
    types: Mapping[str, int]
    tensors: tuple[TensorLine, ...]
    provenance: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The description as JSON has it, with the number of its schema."""
        return {"schema": SCHEMA, **asdict(self)}


def describe(location: str, options: ReadOptions | None = None) -> Description:
    """Describe whatever `location` names: a source, or an artefact, quantized ones too.

    Raises InputError where it is nothing known or its headers are broken.
    """
    options = options or ReadOptions()
    format_, source = find_source(location, options)
    headers = format_.describe(location, source, options)
    manifest = find_manifest(source.path)
    return Description(
        path=str(source.path),
        name=manifest.name if manifest else headers.name,
        layout=headers.layout,
        geometry=headers.geometry.as_dict(),
        parameters=headers.geometry.parameters,
        tokenizer=_tokenizer(headers.tokenizer, headers.geometry),
        types=bytes_by_type(headers.tensors),
        tensors=headers.tensors,
        provenance=asdict(manifest) if manifest else dict(headers.origin),
    )


def _tokenizer(tokenizer: Tokenizer, geometry: Geometry) -> dict[str, Any]:
    runs = tokenizer.whitespace_ids
    return {
        "entries": tokenizer.size,
        "merges": len(tokenizer.merges),
        "end_of_text": tokenizer.end_of_text,
        "white_space": [min(runs), max(runs)] if runs else [],
        "padding_rows": geometry.vocab_size - tokenizer.size,
    }
