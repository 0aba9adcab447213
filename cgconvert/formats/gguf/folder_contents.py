"""What lies beside a GGUF file that llama.cpp would take with it, or in its place.

The folder of a GGUF file is the user's: other models in it are artefacts of their own, and an
imatrix is read by nothing that runs models. So only files that llama.cpp itself adds are named.
Source: llama.cpp, common/download.cpp (common_download_get_hf_plan).
"""

from __future__ import annotations

import os
from pathlib import Path

from cgconvert.errors import InputError
from cgconvert.formats.gguf.split import part_of
from cgconvert.formats.loader_files import LoaderFile, Unchecked

__all__ = ["BESIDE", "unchecked"]

BESIDE: tuple[LoaderFile, ...] = (
    # find_best_sibling, for each of the keywords that gguf_filename_is_model passes over.
    LoaderFile(("*mmproj*.gguf",), "llama.cpp loads it with the model, as a projector of images"),
    LoaderFile(
        ("*mtp-*.gguf", "*eagle3-*.gguf", "*dflash-*.gguf", "*dspark-*.gguf"),
        "llama.cpp loads it with the model, as a draft of its text",
    ),
    LoaderFile(("preset.ini",), "llama.cpp takes all its arguments from it, before any model"),
)
"""The files that llama.cpp takes with a model, or before it, if it gets a repository's name."""

PARTS = "a part of a model of the same name, which llama.cpp finds before the whole file"


def unchecked(path: Path) -> Unchecked:
    """List the files beside a GGUF file that llama.cpp would load. Nothing is opened.

    Raises InputError if the folder cannot be listed.
    """
    try:
        with os.scandir(path.parent) as entries:
            names = sorted(entry.name for entry in entries if entry.name != path.name)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be listed: {error.strerror}") from error
    effects = {
        name: PARTS
        if part_of(name) == path.name.removesuffix(path.suffix)
        else next((entry.effect for entry in BESIDE if entry.matches(name)), None)
        for name in names
    }
    return Unchecked(
        path.parent, tuple(f"{name} ({effect})" for name, effect in effects.items() if effect)
    )
