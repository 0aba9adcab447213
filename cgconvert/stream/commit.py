"""Commit or nothing: everything is written beside the target, then renamed over it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from pathlib import Path
from types import TracebackType

from cgconvert.errors import OutputError, UsageError

__all__ = ["Staging"]

RENAME_EXCHANGE = 2
AT_FDCWD = -100


class Staging:
    """A hidden folder beside the target, held by one run at a time.

    Leaving the context without `commit` removes it; what an interrupted run left is removed by the
    next. The target itself is touched by nothing but the final rename.
    """

    def __init__(self, output: Path, *, force: bool) -> None:
        self.output = Path(os.path.abspath(output))
        self.force = force
        self.folder = self.output.parent / f".{self.output.name}.cgconvert-tmp"
        self.content = self.folder / "content"
        self._lock = -1

    def __enter__(self) -> Staging:
        if self.output.exists() and not self.force:
            raise UsageError(f"{self.output} exists; give --force to replace it")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise UsageError(f"{self.output} is being written by another run") from error
        except OSError as error:
            raise OutputError(f"{self.output}: cannot be written: {error.strerror}") from error
        shutil.rmtree(self.content, ignore_errors=True)  # an interrupted run's
        self.content.mkdir()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def commit_folder(self) -> None:
        """The staged folder becomes the target, at once; an old target goes after that."""
        _sync_tree(self.content)
        if self.output.exists():
            _exchange(self.content, self.output)
        else:
            self.content.rename(self.output)
        _sync(self.output.parent)

    def commit_files(self) -> None:
        """The staged files appear beside the target, the target itself last."""
        _sync_tree(self.content)
        files = sorted(self.content.iterdir(), key=lambda p: p.name == self.output.name)
        for file in files:
            file.replace(self.output.parent / file.name)
        _sync(self.output.parent)


def _exchange(one: Path, other: Path) -> None:
    """Swap two folders in one step where the system can, in two renames where it cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        done = libc.renameat2(
            AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE
        )
        if done == 0:
            return
        if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))
    aside = one.with_name("replaced")
    other.rename(aside)
    one.rename(other)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
