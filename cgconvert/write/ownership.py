"""Whether a file or folder is an unchanged artefact of cgconvert's, which may be replaced.

Its manifest proves it: the manifest is as it was written, and names every file with its size and
SHA-256. Everything else belongs to the user, and so does a folder that holds anything else.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from cgconvert.errors import InputError, UsageError, first_few
from cgconvert.io.file_names import path_from_here
from cgconvert.io.system.names import user_home
from cgconvert.io.system.owners import is_users
from cgconvert.write.known_hashes import SMALL_BYTES, known_sha256
from cgconvert.write.manifest import (
    MANIFEST_NAME,
    expected_files,
    find_manifest,
    is_as_written,
    manifest_path,
)

__all__ = ["Replacement", "foreign_part", "protected_place"]

NAMED = 3
"""How many files a message names."""

SYSTEM_FILES = (".DS_Store", "Thumbs.db")
"""Files that macOS and Windows put into every folder that is looked at."""

Snapshot = dict[str, tuple[int, ...]]
"""What identifies each file and folder of an artefact as unchanged, by its path in it."""


class Replacement:
    """What `force` may replace at the path of an output.

    Args:
        force: Whether anything may be replaced at all.
        is_folder: Whether the new artefact is a folder.
    """

    def __init__(self, *, force: bool, is_folder: bool) -> None:
        self.force, self.is_folder = force, is_folder
        self._proven: Snapshot | None = None
        """What was at the output when it was looked at; all of it may be replaced."""

    def check(self, output: Path) -> bool:
        """Whether something lies at `output`, which may be replaced.

        What was proven before is not hashed again as long as it is unchanged. Without `force`,
        nothing may have changed since the first look.

        Raises UsageError if something lies there that may not be replaced.
        """
        shown, snapshot, is_there = (
            path_from_here(output),
            _snapshot(output),
            os.path.lexists(output),
        )
        if self._proven is not None and snapshot == self._proven:
            return is_there
        if reason := self._reason(output):
            raise UsageError(f"{shown}: {reason}; choose another `output`")
        if is_there and not self.force:
            raise UsageError(f"{shown} exists; give `force=True` to replace it")
        if self._proven is not None and not self.force:
            raise UsageError(f"{manifest_path(shown)} was made meanwhile; choose another `output`")
        self._proven = snapshot
        return is_there

    def is_own(self, path: Path) -> bool:
        """Whether what was moved to `path`, and the manifest moved beside it, may be removed."""
        if self._proven is not None:
            if self._proven == _snapshot(path):
                return True
            if not self.force:
                return False
        if not os.path.lexists(path):
            return not _stale_manifest(path)
        return not path.is_symlink() and not _unprovable_part(path, all_bytes=True)

    def _reason(self, path: Path) -> str:
        """Say why what lies at `path` may not be replaced; "" if it may."""
        if not os.path.lexists(path):
            return "" if self.is_folder else _stale_manifest(path)
        if reason := protected_place(path):
            return reason
        if path.is_dir() != self.is_folder and not path.is_symlink():
            return f"exists and is {'a file' if self.is_folder else 'a folder'}"
        part = _unprovable_part(path, all_bytes=self.force)
        return f"exists and is not cgconvert's to replace: {part}" if part else ""


def protected_place(path: Path) -> str:
    """Say what makes a place one that is never replaced, whatever it holds; "" if nothing does."""
    real = Path(os.path.realpath(path))
    if path.is_symlink():
        return f"is a link (to {path.readlink()}); give the path that it leads to"
    if real.parent == real:
        return "is a root folder"
    if Path(os.path.realpath(os.curdir)).is_relative_to(real):
        return "is the working folder, or holds it"
    home = user_home()
    if home is not None and Path(os.path.realpath(home)).is_relative_to(real):
        return "is your home folder, or holds it"
    if os.path.ismount(path):
        return "is a mount point"
    mode = path.lstat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return "is a device or a pipe, not a file or folder"
    return ""


def foreign_part(path: Path, *, all_bytes: bool) -> str:
    """Say what in a file or folder is not cgconvert's as it was written; "" if nothing is.

    Args:
        path: A regular file or a folder.
        all_bytes: Whether to compare the bytes of large files too, not only their sizes.
    """
    if path.is_dir() and not any(path.iterdir()):
        return ""
    own_path = manifest_path(path)
    where = "in it" if path.is_dir() else "beside it"
    if own_path.is_symlink() or not own_path.is_file():
        return f"there is no {MANIFEST_NAME} {where}"
    try:
        manifest = find_manifest(path)
    except InputError:
        manifest = None
    if manifest is None or not is_as_written(own_path):
        return f"the {own_path.name} {where} is not one that cgconvert wrote"
    entries = expected_files(path, manifest)
    if not path.is_dir():
        named = {path.name: path} if path.name in entries else {}
        unnamed = [] if named else [path.name]
    else:
        present = dict(_walk(path))
        present.pop(MANIFEST_NAME)
        named = {name: file for name, file in present.items() if name in entries}
        folders = {str(parent.as_posix()) for name in named for parent in Path(name).parents}
        unnamed = sorted(
            name for name, file in present.items()
            if name not in named and name not in folders and not _is_system_file(file)
        )  # fmt: skip
    if unnamed:
        names = first_few(unnamed, NAMED, separator=", ", conjunction=" and ")
        return f"its manifest does not name {names}"
    changed = [
        name for name, file in named.items() if not _is_unchanged(file, entries[name], all_bytes)
    ]
    if changed:
        names = first_few(changed, NAMED, separator=", ", conjunction=" and ")
        return f"changed since it was written: {names}"
    return ""


def _unprovable_part(path: Path, *, all_bytes: bool) -> str:
    """Say what at a path is not cgconvert's, or not of this user's; "" if nothing is.

    A manifest proves nothing to a user who did not write it: anyone can write right hashes.
    """
    files = {"it": path, manifest_path(path).name: manifest_path(path)}
    files |= dict(_walk(path)) if path.is_dir() else {}
    strange = [
        name for name, file in files.items() if os.path.lexists(file) and not is_users(file.lstat())
    ]
    if strange:
        return f"{strange[0]} belongs to another user"
    return foreign_part(path, all_bytes=all_bytes)


def _is_unchanged(file: Path, entry: object, all_bytes: bool) -> bool:
    """Whether a file is a regular file of the size and, if it is compared, hash of its entry."""
    status = file.lstat()
    if not isinstance(entry, dict) or not stat.S_ISREG(status.st_mode):
        return False
    if status.st_size != entry.get("bytes"):
        return False
    if not all_bytes and status.st_size >= SMALL_BYTES:
        return True
    try:
        return known_sha256(file) == entry.get("sha256")
    except InputError:  # a hole, which no run wrote
        return False


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the relative path and the path of everything below a folder; follow no link."""
    for parent, folders, files in os.walk(folder, onerror=_raise):
        for name in (*folders, *files):
            path = Path(parent, name)
            yield path.relative_to(folder).as_posix(), path


def _raise(error: OSError) -> None:
    """A folder that cannot be listed may hold anything."""
    raise error


def _is_system_file(path: Path) -> bool:
    return path.name in SYSTEM_FILES and stat.S_ISREG(path.lstat().st_mode)


def _stale_manifest(output: Path) -> str:
    """Say that a file which is not cgconvert's lies where the manifest of `output` has to go."""
    path = manifest_path(output)
    if not os.path.lexists(path):
        return ""
    if not path.is_symlink() and is_users(path.lstat()) and is_as_written(path):
        return ""
    return f"{path.name} exists beside it and is not one that cgconvert wrote"


def _snapshot(path: Path) -> Snapshot | None:
    """Describe every file and folder at `path`, and the manifest beside it; None if it cannot be.

    A rename changes nothing of it. The change time tells of every other change of a file, but a
    rename changes that of what is renamed itself.
    """
    try:
        inner = dict(_walk(path)) if path.is_dir() and not path.is_symlink() else {}
        outer = {"": path} if inner else {"": path, "manifest": manifest_path(path)}
        present = {name: file for name, file in outer.items() if os.path.lexists(file)}
        snapshot = {name: _identity(file)[:-1] for name, file in present.items()}
        return snapshot | {name: _identity(file) for name, file in inner.items()}
    except OSError:
        return None


def _identity(path: Path) -> tuple[int, ...]:
    """Number, size and times of a file; of a folder, whose entries are listed, the number alone."""
    status = path.lstat()
    numbers = status.st_dev, status.st_ino
    if stat.S_ISDIR(status.st_mode):
        return (*numbers, 0)
    return (*numbers, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
