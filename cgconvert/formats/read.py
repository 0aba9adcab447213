"""Read any source, or describe it: what the commands and the API call first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cgconvert.errors import UsageError
from cgconvert.formats.base import SourceFormat, TensorLine, bytes_by_type
from cgconvert.formats.read_options import ReadOptions, complete
from cgconvert.formats.registry import source_format
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.model.decoder import Geometry
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.sources.resolve import Source, resolve
from cgconvert.write.manifest import find_manifest

__all__ = [
    "Description",
    "ReadOptions",
    "TensorLine",
    "describe",
    "find_source",
    "read",
]

SCHEMA = 1


def read(location: str, options: ReadOptions | None = None) -> Checkpoint:
    """Read a checkpoint; only its headers are read, its weights are lazy.

    Args:
        location: a path, the embedded model's name, a name of the family or a Hub id.
        options: what the source itself may not say.

    Raises:
        InputError: the source is missing, broken or not a CodeGen.
        UsageError: an option does not fit the source.
    """
    options = options or ReadOptions()
    format_, source = find_source(location, options)
    return complete(format_.read(source, options), location, source, options)


def find_source(location: str, options: ReadOptions) -> tuple[SourceFormat, Source]:
    """Find what `location` names, and its format.

    Raises InputError where there is nothing known, UsageError for a step where there are none.
    """
    source = resolve(location, options.revision)
    format_ = source_format(source.path)
    if options.step is not None and not format_.has_steps:
        raise UsageError(f"`step` is for Jaxformer checkpoints; {location} is {format_.name}")
    return format_, source


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
        "end_of_text": tokenizer.end_of_text_id,
        "white_space": [min(runs), max(runs)] if runs else [],
        "padding_rows": geometry.vocab_size - tokenizer.size,
    }
