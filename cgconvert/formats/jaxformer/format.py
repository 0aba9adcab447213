"""The format jaxformer, which is only read: the checkpoints of salesforce/jaxformer's training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cgconvert.formats.base import SourceFormat
from cgconvert.formats.jaxformer.files import is_step

if TYPE_CHECKING:
    from cgconvert.formats.headers import Headers
    from cgconvert.formats.read_options import ReadOptions
    from cgconvert.model.decoder import Checkpoint
    from cgconvert.sources.resolve import Source

__all__ = ["Jaxformer"]


class Jaxformer(SourceFormat):
    """A folder of training steps, or one step of it."""

    name = "jaxformer"
    has_steps = True

    def recognises(self, path: Path) -> bool:
        return path.is_dir() and (is_step(path) or any(map(is_step, path.iterdir())))

    def read(self, source: Source, options: ReadOptions) -> Checkpoint:
        from cgconvert.formats.jaxformer import reader

        return reader.read(source, options)

    def describe(self, location: str, source: Source, options: ReadOptions) -> Headers:
        from cgconvert.formats.jaxformer import reader

        return reader.describe(location, source, options)
