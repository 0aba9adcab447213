"""Read any source, or describe it: what the commands and the API call first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cgconvert.formats.adapter.merge import merge
from cgconvert.formats.headers import Headers, TensorLine, bytes_by_type, tensor_lines
from cgconvert.formats.locate import Located, locate
from cgconvert.formats.qkv_groups import with_measured_groups
from cgconvert.formats.read_options import ReadOptions, complete
from cgconvert.io.reading import within_budget
from cgconvert.model.decoder import Checkpoint
from cgconvert.options import AUTO
from cgconvert.sources.resolve import plain_name
from cgconvert.write.manifest import find_manifest

__all__ = [
    "Description",
    "ReadOptions",
    "TensorLine",
    "describe",
    "read",
]

SCHEMA = 1
"""Version of the JSON that `Description.as_dict` returns."""


@within_budget()
def read(location: str, options: ReadOptions | None = None) -> Checkpoint:
    """Read a checkpoint: only its headers are read, the weights are lazy.

    If the number of groups in qkv_proj is to be measured, all weights are read once.

    Args:
        location: a path, the name of the embedded model or of a model of the family, or a Hub id.
        options: facts that the source itself may not contain, such as its tokenizer.

    Raises:
        InputError: the source is missing, broken or not a CodeGen, or its number of groups cannot
            be measured.
        UsageError: an option does not fit the source.
    """
    options = options or ReadOptions()
    located = locate(location, options)
    checkpoint = located.format.read(located.base, located.options)
    if options.mp_num == AUTO:
        checkpoint = with_measured_groups(checkpoint)
    for folder in located.adapters:
        checkpoint = merge(checkpoint, folder)
    checkpoint = complete(checkpoint, location, located.base, options)
    return _with_adapters(checkpoint, located, options)


def _with_adapters(checkpoint: Checkpoint, located: Located, options: ReadOptions) -> Checkpoint:
    """Add the notes, and give a model with adapters a name that is not the base's."""
    checkpoint = replace(checkpoint, notes=(*located.notes, *checkpoint.notes))
    if not located.adapters:
        return checkpoint
    is_base = located.source == located.base
    names = [checkpoint.name if is_base else located.source.name]
    names += [folder.resolve().name for folder in options.adapter]
    origin = {**located.base_origin, **located.source.origin, **checkpoint.origin}
    return replace(checkpoint, name=plain_name("-".join(names)), origin=origin)


@dataclass(frozen=True)
class Description:
    """What the headers of a checkpoint or an artefact contain.

    `types` has the number of stored bytes of each type. `provenance` is the manifest of an
    artefact, or the location and revision of a checkpoint. `generation` has the source's settings
    of sampling, and `notes` what reading did that the user should know.
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
    generation: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the description as JSON values, with the version of the schema."""
        return {"schema": SCHEMA, **asdict(self)}


@within_budget()
def describe(location: str, options: ReadOptions | None = None) -> Description:
    """Describe a source or an artefact, which may be quantized, from its headers alone.

    Raises InputError if no format recognises `location`, its headers are broken, or its number of
    groups cannot be measured.
    """
    options = options or ReadOptions()
    if options.mp_num == AUTO:
        options = replace(options, mp_num=read(location, options).geometry.mp_num or None)
    located = locate(location, options)
    if located.adapters:
        headers, manifest = _merged_headers(read(location, options)), None
    else:
        headers = located.format.describe(location, located.base, options)
        manifest = find_manifest(located.base.path)
    return Description(
        path=str(located.source.path),
        name=manifest.name if manifest else headers.name,
        layout=headers.layout,
        geometry=headers.geometry.as_dict(),
        parameters=headers.geometry.parameters,
        tokenizer=_describe_tokenizer(headers),
        types=bytes_by_type(headers.tensors),
        tensors=headers.tensors,
        provenance=asdict(manifest) if manifest else dict(headers.origin),
        generation=dict(headers.generation.sampling),
        notes=headers.notes,
    )


def _merged_headers(checkpoint: Checkpoint) -> Headers:
    """Describe a model with adapters: the tensors of both from which it is read."""
    stored = {(tensor.path, tensor.name): tensor for tensor in checkpoint.decoder.leaves()}
    return Headers(
        checkpoint.name,
        checkpoint.layout,
        checkpoint.geometry,
        checkpoint.tokenizer,
        tensor_lines(stored.values()),
        checkpoint.origin,
        checkpoint.generation,
        checkpoint.notes,
    )


def _describe_tokenizer(headers: Headers) -> dict[str, Any]:
    """Return counts, ids and names of chat templates.

    `end_of_text` is the tokenizer's own eos id, `stops_at` all ids at which generation stops, and
    `white_space` the first and last id of tokens of white space.
    """
    tokenizer = headers.tokenizer
    whitespace_ids = tokenizer.whitespace_ids
    stops_at = (tokenizer.eos_token_id, *headers.generation.eos_token_ids)
    return {
        "entries": tokenizer.size,
        "merges": len(tokenizer.merges),
        "end_of_text": tokenizer.eos_token_id,
        "stops_at": list(dict.fromkeys(stops_at)),
        "pad": tokenizer.pad_token_id,
        "chat_templates": sorted(tokenizer.chat_templates),
        "white_space": [min(whitespace_ids), max(whitespace_ids)] if whitespace_ids else [],
        "padding_rows": headers.geometry.vocab_size - tokenizer.size,
    }
