"""cgconvert's cache: a folder of the user's alone, with entries that only this user can have made.

An entry is a file that begins with a digest of its name and its data, made with a key that only
this user has (HMAC-SHA-256, RFC 2104). So data that somebody else wrote, or that was written under
another name or copied from another machine, is never believed: it is computed again.

The folder must be closed to others, and lie where nobody can exchange it (io/system/own_files.py).
Elsewhere there is no cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

from cgconvert.escaping import printable
from cgconvert.io.cache_key import KEY_FILE, ensure_key, read_key
from cgconvert.io.system.names import user_home
from cgconvert.io.system.own_files import (
    close_folder,
    fault_of_folder,
    fault_of_place,
    is_closed,
    read_own_file,
    replace_own_file,
)

__all__ = [
    "KINDS",
    "UNPACKED",
    "CacheRefusedError",
    "cache_folder",
    "cache_used",
    "empty_folders_removed",
    "is_cache_allowed",
    "key_of",
    "note_use",
    "private_folder",
    "read_entry",
    "with_cache",
    "write_entry",
]

DIGEST_BYTES = hashlib.sha256().digest_size

MAX_ENTRY_BYTES = 256 << 20
"""A larger entry is not read; the largest that is written, of a long text's outputs, has 10 MB."""

UNPACKED: Final = "unpacked"
"""The kind of checkpoints from tarballs; the entries of `archives` have the hashes of its files."""

KINDS: Mapping[str, str] = {
    "reference": "outputs of the reference",
    "groups": "groups of qkv_proj that text shows",
    "hashes": "SHA-256 of large files",
    "verified": "verifications that passed",
    "archives": "SHA-256 of unpacked tarballs and of their files",
    UNPACKED: "checkpoints from tarballs",
}
"""What the cache holds, by the name of its folder."""

_is_allowed: ContextVar[bool] = ContextVar("is_cache_allowed", default=True)
_used: ContextVar[tuple[set[str], ...]] = ContextVar("cache_used", default=())
_printed: set[str] = set()
"""Messages on the cache's folder that this process has printed, each of them once."""


class CacheRefusedError(OSError):
    """The cache's folder is not the user's alone; the text says why, and what to do."""


def cache_folder() -> Path:
    """cgconvert's cache: the folder $CGCONVERT_CACHE, or cgconvert in the user's cache folder.

    Raises CacheRefusedError if the user has no home folder.
    """
    if folder := os.environ.get("CGCONVERT_CACHE"):
        return Path(os.path.abspath(folder))
    base = os.environ.get("XDG_CACHE_HOME")
    if not base:
        home = user_home()
        if home is None:
            raise _refused("there is no home folder")
        base = str(home / ".cache")
    return Path(os.path.abspath(base)) / "cgconvert"


@contextlib.contextmanager
def with_cache(allowed: bool) -> Iterator[None]:
    """Allow the cache in a block, or have nothing read from it and nothing written to it.

    A block in which it is not allowed stays without it, whatever is called there.
    """
    token = _is_allowed.set(allowed and _is_allowed.get())
    try:
        yield
    finally:
        _is_allowed.reset(token)


def is_cache_allowed() -> bool:
    """Whether the cache may be used here (see `with_cache`)."""
    return _is_allowed.get()


@contextlib.contextmanager
def cache_used() -> Iterator[set[str]]:
    """Collect the kinds (see KINDS) of what is taken from the cache in a block."""
    kinds: set[str] = set()
    token = _used.set((*_used.get(), kinds))
    try:
        yield kinds
    finally:
        _used.reset(token)


def note_use(kind: str) -> None:
    """Note that something of a kind was taken from the cache."""
    for kinds in _used.get():
        kinds.add(kind)


def key_of(values: Any) -> str:
    """Return the SHA-256 (hex) of JSON values: a name for a file that depends on all of them."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def write_entry(kind: str, name: str, data: bytes) -> None:
    """Write an entry of the cache, the whole file or nothing.

    Without it its data are computed again, so an error of the file system is ignored. A folder
    that is refused is named on stderr, once.
    """
    if not is_cache_allowed():
        return
    try:
        folder = private_folder(kind)
        digest = _digest(ensure_key(folder.parent), kind, name, data)
        replace_own_file(folder / name, digest + data)
    except CacheRefusedError as error:
        _print_once(error)
    except OSError:
        return


def read_entry(kind: str, name: str) -> bytes | None:
    """Return the data of an entry; None if it is absent, not this user's, or not as written."""
    if not is_cache_allowed():
        return None
    try:
        folder = private_folder(kind, make=False)
        key = read_key(folder.parent)
        if key is None:
            return None
        raw, _ = read_own_file(folder / name, MAX_ENTRY_BYTES)
    except CacheRefusedError as error:
        _print_once(error)
        return None
    except OSError:
        return None
    digest, data = raw[:DIGEST_BYTES], raw[DIGEST_BYTES:]
    if not hmac.compare_digest(digest, _digest(key, kind, name, data)):
        return None
    note_use(kind)
    return data


def private_folder(kind: str, *, make: bool = True) -> Path:
    """Return the folder of a kind of entries, once it and all above it have been checked.

    If others can look into a folder of the user's, it is closed to them (mode 700).

    Args:
        kind: One of KINDS.
        make: Whether folders that are missing are made.

    Raises:
        CacheRefusedError: It is not the user's alone, or others could exchange it.
        OSError: It is missing, or cannot be made.
    """
    folder = cache_folder()
    if fault := fault_of_place(folder):
        raise _refused(fault)
    if make and not folder.parent.is_dir():
        for parent in reversed([path for path in folder.parents if not path.exists()]):
            parent.mkdir(0o700, exist_ok=True)
        if fault := fault_of_place(folder):
            raise _refused(fault)
    for path in (folder, folder / kind):
        if make:
            try:
                path.mkdir(0o700)
            except FileExistsError:
                if fault := fault_of_place(path):  # it may have been made a moment ago
                    raise _refused(fault) from None
        if path != folder and stat.S_ISLNK(path.lstat().st_mode):
            raise _refused(f"{path} is a link")
        if fault := fault_of_folder(path) or _close(path, is_whole=path == folder):
            raise _refused(fault)
    return folder / kind


@contextlib.contextmanager
def empty_folders_removed(kind: str) -> Iterator[None]:
    """Remove the folders of a kind and of the cache at the end, if the block made them in vain."""
    made: list[Path] = []
    with contextlib.suppress(CacheRefusedError):
        made = [path for path in (cache_folder() / kind, cache_folder()) if not path.exists()]
    try:
        yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def _close(path: Path, *, is_whole: bool) -> str:
    """Close a folder to others; say why not if it holds more than the cache."""
    if is_closed(path):
        return ""
    if is_whole and not {entry.name for entry in path.iterdir()} <= {*KINDS, KEY_FILE}:
        return f"others can look into {path}, which holds other things than the cache"
    close_folder(path)
    return ""


def _refused(fault: str) -> CacheRefusedError:
    return CacheRefusedError(
        f"{fault}; set CGCONVERT_CACHE to a folder that is yours alone (mode 700)"
    )


def _print_once(error: CacheRefusedError) -> None:
    """Print once that there is no cache, and why."""
    if str(error) not in _printed:
        _printed.add(str(error))
        print(printable(f"cgconvert: without a cache: {error}"), file=sys.stderr)


def _digest(key: bytes, kind: str, name: str, data: bytes) -> bytes:
    """The digest of an entry's name and data."""
    digest = hmac.new(key, os.fsencode(f"{kind}/{name}\0"), "sha256")
    digest.update(data)
    return digest.digest()
