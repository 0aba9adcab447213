"""The options of reading a source, and how they change the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cgconvert.errors import InputError
from cgconvert.io.strict_json import read_json
from cgconvert.model import family
from cgconvert.model.chat_templates import chat_template_files, read_chat_templates
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.generation_config import GENERATION_CONFIG, OLD_EOS
from cgconvert.model.tokenizer import END_OF_TEXT, Tokenizer
from cgconvert.model.tokenizer_files import TOKENIZER_FILES
from cgconvert.options import AUTO
from cgconvert.sources import hub
from cgconvert.sources.resolve import Source
from cgconvert.write.manifest import find_manifest

__all__ = ["ReadOptions", "complete", "read_tokenizer"]

CODEGEN_ROWS = 51200
"""The rows of CodeGen's embedding. GPT-J's has 50,400, and its fine-tunes a few more."""

RELEASED_CLASSES = (None, "CodeGenTokenizer", "CodeGenTokenizerFast")
"""The classes of a release's tokenizer; None where no file names one."""


@dataclass(frozen=True)
class ReadOptions:
    """Facts about a source that the source itself may not contain.

    `tokenizer` and `config` replace the source's own, `mp_num` is the number of groups in qkv_proj
    (AUTO: it is measured), `step` chooses one of a Jaxformer run's steps, `revision` is a branch,
    tag or commit on the Hub. `adapter` lists folders with LoRA adapters, which are merged into the
    model in this order.
    """

    tokenizer: Path | None = None
    config: Path | None = None
    mp_num: int | Literal["auto"] | None = None
    step: int | None = None
    revision: str | None = None
    adapter: tuple[Path, ...] = ()

    @property
    def groups(self) -> int | None:
        """The number of groups to read with: 1, which always fits, where it will be measured."""
        return 1 if self.mp_num == AUTO else self.mp_num

    def manifest_entry(self) -> dict[str, Any]:
        """Return the options that a manifest records, to read the same source again.

        It records the number of groups that was measured, and not that it was (see qkv_groups).
        """
        values = {key: getattr(self, key) for key in ("tokenizer", "config", "mp_num")}
        if values["mp_num"] == AUTO:
            del values["mp_num"]
        entry = {
            key: str(value) if isinstance(value, Path) else value
            for key, value in values.items()
            if value is not None
        }
        return entry | ({"adapter": [str(path) for path in self.adapter]} if self.adapter else {})

    def with_tokenizer(self, checkpoint: Checkpoint) -> Checkpoint:
        """Replace a checkpoint's tokenizer by the user's, if there is one.

        Chat templates stay if the user's tokenizer has none.
        """
        if self.tokenizer is None:
            return checkpoint
        tokenizer = Tokenizer.load(self.tokenizer)
        templates = tokenizer.chat_templates or checkpoint.tokenizer.chat_templates
        return replace(checkpoint, tokenizer=replace(tokenizer, chat_templates=templates))

    @classmethod
    def from_origin(cls, origin: Mapping[str, Any]) -> ReadOptions:
        """Restore the options that a manifest recorded in its source's origin.

        Raises InputError for a value of the wrong type.
        """
        types = {
            "tokenizer": str, "config": str, "mp_num": int, "step": int, "revision": str,
            "adapter": list,
        }  # fmt: skip
        values = {key: origin[key] for key in types if origin.get(key) is not None}
        for key, value in values.items():
            items = value if isinstance(value, list) else ()
            is_valid = isinstance(value, types[key]) and not isinstance(value, bool)
            if not is_valid or not all(isinstance(item, str) for item in items):
                raise InputError(f"the manifest's {key} is {value!r}, which it cannot be")
        for key in values.keys() & {"tokenizer", "config"}:
            values[key] = Path(values[key])
        values["adapter"] = tuple(map(Path, values.get("adapter", ())))
        return cls(**values)


def read_tokenizer(
    folder: Path, options: ReadOptions, name: str, config: Mapping[str, Any]
) -> tuple[Tokenizer, tuple[Path, ...]]:
    """Load the tokenizer of a source in `folder`, and list the files it was read from.

    The user's tokenizer has precedence over the source's. If there is neither, GPT-2's is fetched
    from the Hub, which CodeGen and GPT-J use. A source's own tokenizer is used as it is. To
    GPT-2's tokenizer CodeGen's runs of white space are added, where the source has none of its own
    or is an original release.

    Args:
        folder: The folder of the source.
        options: The options of reading.
        name: The name of the source.
        config: The contents of its configuration.

    Raises:
        InputError: The tokenizer is broken, or a MOSS has none.
    """
    has_own = any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json"))
    if options.tokenizer is None and not has_own and config.get("model_type") == "moss":
        raise InputError(
            f"{folder}: has no tokenizer, and MOSS's is its own; give a folder with vocab.json and "
            "merges.txt of fnlp/moss-moon-003-base with `tokenizer`"
        )
    try:
        path = options.tokenizer or (folder if has_own else hub.fetch_gpt2_tokenizer())
    except InputError as error:
        raise InputError(f"{folder}: has no tokenizer, and {error}") from error
    directory = path if path.is_dir() else path.parent
    files = tuple(directory / file for file in TOKENIZER_FILES if (directory / file).is_file())
    tokenizer = Tokenizer.load(
        path,
        _configured_id(folder, config, "eos_token_id"),
        _configured_id(folder, config, "pad_token_id"),
    )
    files += chat_template_files(directory)
    if not tokenizer.chat_templates and directory != folder:
        own_config = folder / "tokenizer_config.json"
        inline = read_json(own_config).get("chat_template") if own_config.is_file() else None
        templates = read_chat_templates(folder, inline)
        tokenizer = replace(tokenizer, chat_templates=templates)
        files += chat_template_files(folder)
    lacks_runs = not has_own or _is_release(name, directory)
    if not lacks_runs or not _is_plain_gpt2(tokenizer) or _is_gptj(config):
        return tokenizer, files
    tokenizer = tokenizer.with_whitespace_runs()
    runs = tokenizer.whitespace_ids
    note = (
        f"{path}: is GPT-2's tokenizer; CodeGen's runs of white space were added to it, ids "
        f"{runs[0]} to {runs[-1]}"
    )
    return replace(tokenizer, notes=(*tokenizer.notes, note)), files


def _is_plain_gpt2(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer has no other added token than GPT-2's."""
    return [token.content for token in tokenizer.added] == [END_OF_TEXT]


def _is_release(name: str, folder: Path) -> bool:
    """Whether a source is an original release, and its tokenizer of no other class than its."""
    path = folder / "tokenizer_config.json"
    tokenizer_class = read_json(path).get("tokenizer_class") if path.is_file() else None
    return family.is_published_checkpoint(name) and tokenizer_class in RELEASED_CLASSES


def _is_gptj(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is GPT-J's, not that of a CodeGen in GPT-J's layout."""
    return config.get("model_type") == "gptj" and config.get("vocab_size") != CODEGEN_ROWS


def _configured_id(folder: Path, config: Mapping[str, Any], key: str) -> int | None:
    """Return an id of the configurations, for a tokenizer that names no such token."""
    path = folder / GENERATION_CONFIG
    value: object = (read_json(path) if path.is_file() else config).get(key)
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int) or value == OLD_EOS:
        return None
    return value


def complete(
    checkpoint: Checkpoint, location: str, source: Source, options: ReadOptions
) -> Checkpoint:
    """Record in a checkpoint the `location` that the user gave, the options and all notes.

    An artefact with a manifest gets the name in its manifest. Ids at which generation stops are
    left out, with a note, if the model has no rows for them. Raises InputError if the tokenizer
    has more entries than the embedding has rows.
    """
    manifest = find_manifest(checkpoint.path)
    rows = checkpoint.geometry.vocab_size
    if checkpoint.tokenizer.size > rows:
        raise InputError(
            f"{source.path}: the tokenizer has {checkpoint.tokenizer.size} entries, the embedding "
            f"only {rows} rows; give the right one with `tokenizer`"
        )
    notes = [*checkpoint.tokenizer.notes, *checkpoint.generation.notes, *checkpoint.notes]
    eos_token_ids = checkpoint.generation.eos_token_ids
    outside = [index for index in eos_token_ids if index >= rows]
    if outside:
        notes.append(
            f"{source.path}: eos_token_id {', '.join(map(str, outside))} is left out: the model "
            f"has {rows} rows"
        )
        kept = tuple(index for index in eos_token_ids if index < rows)
        checkpoint = replace(
            checkpoint, generation=replace(checkpoint.generation, eos_token_ids=kept)
        )
    return replace(
        checkpoint,
        name=manifest.name if manifest else checkpoint.name,
        origin={"given": location, **checkpoint.origin, **options.manifest_entry()},
        notes=tuple(notes),
    )
