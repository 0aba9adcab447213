"""What lies in a Hugging Face folder: the files that belong to it, and what was not checked."""

from __future__ import annotations

from pathlib import Path

from cgconvert.formats.huggingface.loader_entries import unchecked_entries
from cgconvert.formats.huggingface.reader import find_weights
from cgconvert.formats.loader_files import Unchecked, unchecked_files
from cgconvert.model.chat_templates import CHAT_TEMPLATE, CHAT_TEMPLATE_FOLDER, chat_template_files
from cgconvert.model.tokenizer_files import TOKENIZER_FILES
from cgconvert.sources.weight_files import INDEX_SUFFIX, STANDARD_NAMES

__all__ = ["CONFIGURATIONS", "configuration_files", "unchecked"]

CONFIGURATIONS = ("config.json", "generation_config.json", *TOKENIZER_FILES, CHAT_TEMPLATE)
"""The small files of a folder; each is compared with what the source says."""


def unchecked(folder: Path) -> Unchecked:
    """List what lies in a folder, or stands in its configurations, and was not checked.

    Raises InputError if a file that has to be read for this is broken.
    """
    own = configuration_files(folder)
    weights = find_weights(folder)[1]
    own |= {path.relative_to(folder).as_posix() for path in weights}
    own |= {
        f"{name}{INDEX_SUFFIX}" for name in STANDARD_NAMES.values() if weights
        and weights[0].suffix == Path(name).suffix and weights[0].name != name
    }  # fmt: skip
    return unchecked_files(folder, own) | unchecked_entries(folder)


def configuration_files(folder: Path) -> set[str]:
    """The paths in a folder of its small files, chat templates included."""
    templates = {
        path.relative_to(folder).as_posix()
        for path in chat_template_files(folder)
        if path.parent.name == CHAT_TEMPLATE_FOLDER
    }
    return {*CONFIGURATIONS, *templates}
