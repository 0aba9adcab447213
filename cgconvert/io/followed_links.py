"""Which links in a checkpoint or an artefact are followed.

A link in a checkpoint or an artefact may lead to any file that the user can read, whose content or
hash would then stand in an output, a report or a message. So a link is followed only if it stays in
its folder, or leads where links of the Hub's cache do: from `models--x--y/snapshots/REVISION/` to a
file of `models--x--y/blobs/` (huggingface_hub, file_download.py: `_create_symlink`). The folder or
file that the user has named may be a link itself.
"""

from __future__ import annotations

import os
from pathlib import Path

from cgconvert.errors import InputError
from cgconvert.io.file_names import is_possible
from cgconvert.io.system.open_folder import is_in_open_folder

__all__ = ["check_links", "note_user_path"]

SNAPSHOTS, BLOBS, MODELS = "snapshots", "blobs", "models--"

_folders: set[str] = set()
_files: set[str] = set()
_beside: set[str] = set()
"""Absolute paths of the folders and files that users have named in this process, and of the folders
in which these files lie."""


def note_user_path(path: Path) -> None:
    """Note a folder or file that the user has named; links in its path are followed."""
    if not is_possible(path):
        return
    for name in (os.path.abspath(path), os.path.realpath(path)):
        if path.is_dir():
            _folders.add(name)
        else:
            _files.add(name)
            _beside.add(str(Path(name).parent))


def check_links(path: Path, opened: str = "") -> None:
    """Raise InputError if a link leads from a path out of the folder that the user has named.

    With `opened`, the name of the file that was opened at this path, that file is judged, whatever
    lies at the path by now.

    If the user has named a file, its folder counts as named for the files beside it. Paths outside
    of all these folders were made by cgconvert itself, and are not checked.
    """
    name = os.path.abspath(path)
    if is_in_open_folder(name):
        return
    folder = None if name in _files else _named_folder(name)
    if folder is None:
        return
    real = opened or os.path.realpath(name)
    root = os.path.realpath(folder)
    if Path(real).is_relative_to(root) or _is_blob(name, real):
        return
    raise InputError(
        f"{path}: is a link out of its folder, which is not followed; copy the file to its place"
    )


def _named_folder(name: str) -> str | None:
    """The innermost folder around a path that the user has named; None if there is none."""
    folders = [str(folder) for folder in Path(name).parents]
    if folders and folders[0] in _beside:
        return folders[0]
    return next((folder for folder in folders if folder in _folders), None)


def _is_blob(name: str, real: str) -> bool:
    """Whether a path in a snapshot of the Hub's cache leads to a blob of the same repository."""
    folder = Path(os.path.realpath(Path(name).parent))
    for snapshots in folder.parents:
        repository = snapshots.parent
        if snapshots.name == SNAPSHOTS and repository.name.startswith(MODELS):
            return Path(real).parent == repository / BLOBS
    return False
