"""What cgconvert's cache holds: `cached` lists it, checks it, and removes it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

from cgconvert.api.declarations import CACHE
from cgconvert.errors import OutputError
from cgconvert.io.cache import UNPACKED, CacheRefusedError, read_entry, with_cache
from cgconvert.io.cache_contents import CacheItem, cache_contents, remove_item, remove_key
from cgconvert.options import accepted_values
from cgconvert.sources.tarball import CHECKPOINT_FILES
from cgconvert.sources.unpacked import is_as_unpacked, read_record

__all__ = ["CacheItem", "cached", "checked_cache"]


def checked_cache(cache: object) -> AbstractContextManager[None]:
    """Allow the cache in a block, or not, as an argument of an API function says.

    Raises UsageError if the argument is neither true nor false.
    """
    return with_cache(accepted_values(CACHE, {"cache": cache}).get("cache", CACHE[0].default))


def cached(*, check: bool = False, delete: bool = False) -> list[CacheItem]:
    """List what the cache holds; check that it is as this user wrote it, or remove it.

    Only files are removed that lie where cgconvert puts them, under names that it gives, and that
    are the user's own. Do not remove what a run is reading: an unpacked tarball.

    Args:
        check: Read everything and compare it with its digests. What is not as it was written has a
            `fault`; it is never used, and made again when it is needed.
        delete: Remove everything that is cgconvert's, and the key.

    Returns:
        Each entry and each unpacked tarball: its kind, path, bytes and age, and its fault. With
        `delete`, what was removed, and what is not cgconvert's and stays: `is_own` tells which.

    Raises:
        OutputError: The cache's folder is not the user's alone, or cannot be read.

    Example:
        >>> cgconvert.cached()
        []
    """
    try:
        items = cache_contents(CHECKPOINT_FILES)
    except CacheRefusedError as error:
        raise OutputError(str(error)) from error
    except OSError as error:
        raise OutputError(f"{error.filename}: cannot be read: {error.strerror}") from error
    if check:
        items = [item if item.fault else _checked(item) for item in items]
    if delete:
        items = [item for item in items if not item.is_own or remove_item(item)]
        remove_key()
    return items


def _checked(item: CacheItem) -> CacheItem:
    """Return an item with its fault, if it has one."""
    name = item.path.name
    if item.kind == UNPACKED:
        record = read_record(name)
        is_valid = record is not None and is_as_unpacked(item.path, record, all_bytes=True)
    else:
        is_valid = read_entry(item.kind, name) is not None
    return item if is_valid else replace(item, fault="is not as you wrote it here")
