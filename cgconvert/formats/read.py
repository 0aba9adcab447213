"""Read any source: the one entry that commands use."""

from __future__ import annotations

from cgconvert.errors import UsageError
from cgconvert.formats.base import SourceFormat
from cgconvert.formats.read_options import ReadOptions, complete
from cgconvert.formats.registry import source_format
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.sources.resolve import Source, resolve

__all__ = ["ReadOptions", "find_source", "read"]


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
