"""The options of reading a source, and how they change the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.model.tokenizer_files import TOKENIZER_FILES
from cgconvert.sources import hub
from cgconvert.sources.resolve import Source
from cgconvert.write.manifest import find_manifest

__all__ = ["ReadOptions", "complete", "read_tokenizer"]


@dataclass(frozen=True)
class ReadOptions:
    """Facts about a source that the source itself may not contain.

    `tokenizer` and `config` replace the source's own, `mp_num` is the number of groups in qkv_proj,
    `step` chooses one of a Jaxformer run's steps, `revision` is a branch, tag or commit on the Hub.
    """

    tokenizer: Path | None = None
    config: Path | None = None
    mp_num: int | None = None
    step: int | None = None
    revision: str | None = None

    def manifest_entry(self) -> dict[str, str | int]:
        """Return the options that a manifest records, to read the same source again."""
        values = {key: getattr(self, key) for key in ("tokenizer", "config", "mp_num")}
        return {
            key: str(value) if isinstance(value, Path) else value
            for key, value in values.items()
            if value is not None
        }

    def with_tokenizer(self, checkpoint: Checkpoint) -> Checkpoint:
        """Replace a checkpoint's tokenizer by the user's, if there is one."""
        if self.tokenizer is None:
            return checkpoint
        return replace(checkpoint, tokenizer=Tokenizer.load(self.tokenizer))

    @classmethod
    def from_origin(cls, origin: Mapping[str, Any]) -> ReadOptions:
        """Restore the options that a manifest recorded in its source's origin.

        Raises InputError for a value of the wrong type.
        """
        types = {"tokenizer": str, "config": str, "mp_num": int, "step": int, "revision": str}
        values = {key: origin[key] for key in types if origin.get(key) is not None}
        for key, value in values.items():
            if not isinstance(value, types[key]) or isinstance(value, bool):
                raise InputError(f"the manifest's {key} is {value!r}, which it cannot be")
        for key in values.keys() & {"tokenizer", "config"}:
            values[key] = Path(values[key])
        return cls(**values)


def read_tokenizer(folder: Path, options: ReadOptions) -> tuple[Tokenizer, tuple[Path, ...]]:
    """Load the tokenizer of a source in `folder`, and list the files it was read from.

    The user's tokenizer has precedence over the source's. If there is neither, GPT-2's is fetched
    from the Hub, because every CodeGen uses it. Raises InputError if it is broken.
    """
    path = options.tokenizer or folder
    if options.tokenizer is None and not any(
        (path / name).is_file() for name in ("tokenizer.json", "vocab.json")
    ):
        path = hub.fetch_gpt2_tokenizer()
    directory = path if path.is_dir() else path.parent
    files = tuple(directory / name for name in TOKENIZER_FILES if (directory / name).is_file())
    return Tokenizer.load(path), files


def complete(
    checkpoint: Checkpoint, location: str, source: Source, options: ReadOptions
) -> Checkpoint:
    """Record in a checkpoint the `location` that the user gave, and the options.

    An artefact with a manifest gets the name in its manifest. Raises InputError if the tokenizer
    has more entries than the embedding has rows.
    """
    manifest = find_manifest(checkpoint.path)
    if checkpoint.tokenizer.size > checkpoint.geometry.vocab_size:
        raise InputError(
            f"{source.path}: the tokenizer has {checkpoint.tokenizer.size} entries, the embedding "
            f"only {checkpoint.geometry.vocab_size} rows; give the right one with `tokenizer`"
        )
    return replace(
        checkpoint,
        name=manifest.name if manifest else checkpoint.name,
        origin={"given": location, **checkpoint.origin, **options.manifest_entry()},
    )
