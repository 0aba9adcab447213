"""Read any source, or describe it: what the commands and the API call first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cgconvert.errors import UsageError
from cgconvert.formats.base import SourceFormat, TensorLine, bytes_by_type
from cgconvert.formats.read_options import ReadOptions, complete
from cgconvert.formats.registry import source_format
from cgconvert.model.decoder import Checkpoint, Geometry
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
"""Version of the JSON that `Description.as_dict` returns."""


def read(location: str, options: ReadOptions | None = None) -> Checkpoint:
    """Read a checkpoint: only its headers are read, the weights are lazy.

    Args:
        location: a path, the name of the embedded model or of a model of the family, or a Hub id.
        options: facts that the source itself may not contain, such as its tokenizer.

    Raises:
        InputError: the source is missing, broken or not a CodeGen.
        UsageError: an option does not fit the source.
    """
    options = options or ReadOptions()
    format_, source = find_source(location, options)
    return complete(format_.read(source, options), location, source, options)


def find_source(location: str, options: ReadOptions) -> tuple[SourceFormat, Source]:
    """Find the source that `location` names, and its format.

    Raises InputError if no format recognises it, UsageError if `options` choose a step and the
    format has none.
    """
    source = resolve(location, options.revision)
    format_ = source_format(source.path)
    if options.step is not None and not format_.has_steps:
        raise UsageError(f"`step` is for Jaxformer checkpoints; {location} is {format_.name}")
    return format_, source


@dataclass(frozen=True)
class Description:
    """What the headers of a checkpoint or an artefact contain.

    `types` has the number of stored bytes of each type. `provenance` is the manifest of an
    artefact, or the location and revision of a checkpoint.
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
        """Return the description as JSON values, with the version of the schema."""
        return {"schema": SCHEMA, **asdict(self)}


def describe(location: str, options: ReadOptions | None = None) -> Description:
    """Describe a source or an artefact, which may be quantized, from its headers alone.

    Raises InputError if no format recognises `location` or its headers are broken.
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
        tokenizer=_describe_tokenizer(headers.tokenizer, headers.geometry),
        types=bytes_by_type(headers.tensors),
        tensors=headers.tensors,
        provenance=asdict(manifest) if manifest else dict(headers.origin),
    )


def _describe_tokenizer(tokenizer: Tokenizer, geometry: Geometry) -> dict[str, Any]:
    """Return counts and ids; `white_space` is the first and last id of tokens of white space."""
    whitespace_ids = tokenizer.whitespace_ids
    return {
        "entries": tokenizer.size,
        "merges": len(tokenizer.merges),
        "end_of_text": tokenizer.eos_token_id,
        "white_space": [min(whitespace_ids), max(whitespace_ids)] if whitespace_ids else [],
        "padding_rows": geometry.vocab_size - tokenizer.size,
    }
