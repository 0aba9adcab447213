"""Small files that appear complete or not at all: written under another name, then renamed.

The other name cannot be foreseen, and belongs to this file alone, so nothing is shared with other
runs or users and nothing has to be waited for. Outputs, which may replace what a user has, are
written with `Staging` instead.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from cgconvert.io.commit import SUFFIX
from cgconvert.io.system.files import open_new, sync
from cgconvert.io.system.folders import is_users
from cgconvert.io.system.locks import hold, is_held
from cgconvert.io.system.names import rename

__all__ = ["atomic_path", "file_of_partial", "is_partial", "is_written", "write_atomic"]

_PARTIAL = re.compile(rf"\.(.+)\.[0-9a-f]{{16}}{re.escape(SUFFIX)}", re.DOTALL)
"""The name of a temporary file: that of the file, and 64 random bits."""


def write_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace the content of a file by `data` in one step; if OSError is raised, it is unchanged.

    `durable` has the same meaning as in `atomic_path`.
    """
    with atomic_path(path, durable=durable) as partial:
        partial.write_bytes(data)


@contextlib.contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file written there replaces `path` at the end.

    If the block raises an error, `path` stays as it is. Only this user can read the file. Its
    folder has to be this user's too: in others the temporary file could be exchanged.

    Args:
        path: The file to replace. If it is a link, the link is replaced.
        durable: Whether the data is synced to the disk before the rename. A cache file that is
            checked whenever it is read needs no sync.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}{SUFFIX}")
    descriptor = open_new(partial)
    try:
        try:
            hold(descriptor)
            yield partial
            if durable:
                sync(partial)
        finally:
            os.close(descriptor)  # first, because Windows renames no file that is open
        rename(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def is_partial(path: Path) -> bool:
    """Whether a path is a temporary file of this user's, which `atomic_path` has made."""
    try:
        status = path.lstat()
        return bool(
            _PARTIAL.fullmatch(path.name)
            and stat.S_ISREG(status.st_mode)
            and status.st_nlink == 1
            and is_users(status)
        )
    except OSError:
        return False


def file_of_partial(path: Path) -> Path:
    """The file that was to be written by way of a temporary file."""
    match = _PARTIAL.fullmatch(path.name)
    return path.with_name(match[1]) if match else path


def is_written(path: Path) -> bool:
    """Whether a run is writing a temporary file now; Windows does not say."""
    return is_held(path)
