"""Find what a location stands for: a source and its format, and the adapters to merge into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError, UsageError
from cgconvert.formats.adapter.base_model import find_base, has_adapter
from cgconvert.formats.base import SourceFormat
from cgconvert.formats.read_options import ReadOptions
from cgconvert.formats.registry import is_source, source_format
from cgconvert.io.followed_links import note_user_path
from cgconvert.sources.resolve import Source, resolve

__all__ = ["Located", "locate"]

MAX_ADAPTERS = 4
"""The most adapters that may name each other as their base, so that a circle ends."""


@dataclass(frozen=True)
class Located:
    """What a location stands for.

    Attributes:
        source: The file or folder that the location names.
        base: The source of the model's weights: `source` itself, unless that is an adapter.
        format: The format of the base.
        adapters: The folders of the adapters, in the order in which they are merged.
        options: How the base is read: with the tokenizer of the last adapter that has one.
        base_origin: Where the base came from, if the source is an adapter.
        notes: What the user should know of the adapters, a line each.
    """

    source: Source
    base: Source
    format: SourceFormat
    adapters: tuple[Path, ...]
    options: ReadOptions
    base_origin: Mapping[str, Any]
    notes: tuple[str, ...]


def locate(location: str, options: ReadOptions) -> Located:
    """Find the source that `location` names, the base of which it is an adapter, and the format.

    Raises InputError if no format recognises it or an adapter's base is not there, UsageError if
    `options` choose a step and the format has none.
    """
    for path in (options.tokenizer, options.config, *options.adapter):
        if path is not None:
            note_user_path(path)
    source = base = resolve(location, options.revision, needs_tokenizer=options.tokenizer is None)
    adapters, origin, notes = list(options.adapter), dict[str, Any](), list[str]()
    while has_adapter(base.path) and not is_source(base.path):
        if len(adapters) == len(options.adapter) + MAX_ADAPTERS:
            raise InputError(f"{location}: more than {MAX_ADAPTERS} adapters, one on the other")
        folder = base.path
        adapters.insert(0, folder)
        base_location, base = find_base(folder)
        notes.append(f"{folder}: is a LoRA adapter; it is merged into its base, {base_location}")
        origin = {"base": base_location, **base.origin}
    format_ = source_format(base.path)
    if options.step is not None and not format_.has_steps:
        raise UsageError(f"`step` is for Jaxformer checkpoints; {location} is {format_.name}")
    tokenizers = [folder for folder in adapters if _has_tokenizer(folder)]
    if options.tokenizer is None and tokenizers:
        options = replace(options, tokenizer=tokenizers[-1])
        notes.append(f"{tokenizers[-1]}: the adapter's tokenizer is used in place of its base's")
    if has_adapter(base.path) and not _is_merged(base.path, adapters):
        notes.append(
            f"{base.path}: the adapter beside the weights is not merged into them; transformers "
            "loads it if peft is installed. Merge it with `adapter`, if the weights are its base's"
        )
    return Located(source, base, format_, tuple(adapters), options, origin, tuple(notes))


def _is_merged(folder: Path, adapters: Sequence[Path]) -> bool:
    """Whether the adapter in a folder is one of those that are merged."""
    return any(folder.resolve() == adapter.resolve() for adapter in adapters)


def _has_tokenizer(folder: Path) -> bool:
    """Whether an adapter was saved with a tokenizer, which may have more tokens than the base's."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
