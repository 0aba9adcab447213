"""Small files that appear complete or not at all: written under another name, then renamed.

This is for files in a folder of this user's alone, such as a staging folder. Outputs, which may lie
where others can write, are written with `Staging` instead.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from cgconvert.io.commit import SUFFIX
from cgconvert.io.system.files import open_new, sync
from cgconvert.io.system.names import rename

__all__ = ["atomic_path", "write_atomic"]


def write_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace the content of a file by `data` in one step; if OSError is raised, it is unchanged.

    `durable` has the same meaning as in `atomic_path`.
    """
    with atomic_path(path, durable=durable) as partial:
        partial.write_bytes(data)


@contextlib.contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file written there replaces `path` at the end.

    If the block raises an error, `path` stays as it is. The temporary name cannot be foreseen, and
    no two writers share one. Only this user can read the file.

    Args:
        path: The file to replace. If it is a link, the link is replaced.
        durable: Whether the data is synced to the disk before the rename. A file that is computed
            again when it is broken needs no sync.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}{SUFFIX}")
    os.close(open_new(partial))
    try:
        yield partial
        if durable:
            sync(partial)
        rename(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
