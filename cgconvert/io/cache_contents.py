"""What lies in the cache, and the removal of what is cgconvert's there.

A file counts as cgconvert's if it lies in the folder of a kind, has a name that cgconvert gives,
and is a regular file of the user's own. Anything else is named and never touched.
"""

from __future__ import annotations

import contextlib
import re
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from cgconvert.io.cache import KINDS, UNPACKED, cache_folder, private_folder
from cgconvert.io.cache_key import KEY_FILE
from cgconvert.io.commit import SUFFIX, Anything
from cgconvert.io.staging import Staging, is_locked, is_staging_folder
from cgconvert.io.system.own_files import is_own_file

__all__ = ["CacheItem", "cache_contents", "remove_item", "remove_key"]

_ENTRY = re.compile(r"[0-9a-f]{64}(\.safetensors|\.json)?|.+-[0-9a-f]{16}")
"""The names of entries: hashes, or those of unpacked folders for their records."""

_PARTIAL = re.compile(r"\..+\.[0-9a-f]{16}")
"""The name of an entry that a killed run was writing."""

_FOLDER = re.compile(r".+-[0-9a-f]{16}")
"""The name of an unpacked folder."""

OLD_RECORD = ".cgconvert-archive.json"
"""A file that older versions wrote into an unpacked folder."""


@dataclass(frozen=True)
class CacheItem:
    """Something that lies in the cache's folder.

    Attributes:
        kind: The name of its kind, one of io.cache.KINDS; "" for what has no place there.
        path: The file or folder.
        nbytes: Its bytes.
        modified: When it was written, in seconds since 1970.
        fault: Why it is not cgconvert's to read or remove, or why it is not believed; "" if it is
            as it was written, as far as was looked at.
        is_own: Whether it is cgconvert's, and the user's own, so that it may be removed.
    """

    kind: str
    path: Path
    nbytes: int
    modified: float
    fault: str = ""
    is_own: bool = True


def cache_contents(unpacked_names: Collection[str]) -> list[CacheItem]:
    """List what lies in the cache, kind by kind, the newest first; what is foreign comes last.

    Args:
        unpacked_names: The names that files of an unpacked folder can have.

    Raises:
        CacheRefusedError: The cache's folder is not the user's alone.
    """
    folder = cache_folder()
    if not folder.exists():
        return []
    items: list[CacheItem] = []
    for kind in KINDS:
        try:
            paths = sorted(private_folder(kind, make=False).iterdir())
        except FileNotFoundError:
            continue
        is_own = (
            (lambda path: _is_own_folder(path, unpacked_names)) if kind == UNPACKED else _is_entry
        )
        own = [_item(kind, path, "" if is_own(path) else "is not cgconvert's") for path in paths]
        items += sorted(own, key=lambda item: -item.modified)
    foreign = sorted(path for path in folder.iterdir() if path.name not in {*KINDS, KEY_FILE})
    items += [
        _item("", path, "" if _is_partial(path) else "is not cgconvert's") for path in foreign
    ]
    return sorted(items, key=lambda item: not item.is_own)


def remove_item(item: CacheItem) -> bool:
    """Remove an item that is cgconvert's; return whether it is gone.

    An unpacked folder is removed file by file, so nothing goes with it that came meanwhile. What a
    run is writing stays.
    """
    if not item.is_own:
        return False
    path = item.path
    with contextlib.suppress(OSError):
        if is_staging_folder(path):
            output = path.with_name(path.name.removeprefix(".").removesuffix(SUFFIX))
            return Staging(output, Anything()).remove()
        if not stat.S_ISDIR(path.lstat().st_mode):
            path.unlink()
            return True
        for file in list(path.iterdir()):
            file.unlink()
        path.rmdir()
        return True
    return False


def remove_key() -> None:
    """Remove the key, and folders that are empty; what is still there becomes void."""
    folder = cache_folder()
    with contextlib.suppress(OSError):
        if is_own_file((folder / KEY_FILE).lstat()):
            (folder / KEY_FILE).unlink()
    for path in (*(folder / kind for kind in KINDS), folder):
        with contextlib.suppress(OSError):
            path.rmdir()


def _item(kind: str, path: Path, fault: str) -> CacheItem:
    statuses = [file.lstat() for file in _files(path)]
    return CacheItem(
        kind=kind,
        path=path,
        nbytes=sum(status.st_size for status in statuses),
        modified=max([path.lstat().st_mtime, *(status.st_mtime for status in statuses)]),
        fault=fault,
        is_own=not fault,
    )


def _files(path: Path) -> Iterator[Path]:
    """Yield a file, or the files below a folder; follow no link."""
    if not stat.S_ISDIR(path.lstat().st_mode):
        yield path
        return
    for inner in path.iterdir():
        yield from _files(inner)


def _is_entry(path: Path) -> bool:
    """Whether a path is an entry of the user's own, or a part of one."""
    is_name = _ENTRY.fullmatch(path.name) is not None
    return (is_name and is_own_file(path.lstat())) or _is_partial(path)


def _is_partial(path: Path) -> bool:
    return _PARTIAL.fullmatch(path.name) is not None and is_own_file(path.lstat())


def _is_own_folder(path: Path, names: Collection[str]) -> bool:
    """Whether a path is an unpacked folder, or one that is being unpacked."""
    if is_staging_folder(path):
        return not is_locked(path)
    if _FOLDER.fullmatch(path.name) is None or not stat.S_ISDIR(path.lstat().st_mode):
        return False
    return all(
        file.name in {*names, OLD_RECORD} and is_own_file(file.lstat()) for file in path.iterdir()
    )
