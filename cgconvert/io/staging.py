"""Outputs that appear complete or not at all: written beside the target, then renamed over it.

`Staging` is for artefacts, which take long and may be continued; `write_atomic` and `atomic_path`
are for a single small file.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from cgconvert.errors import Interrupted, OutputError, UsageError
from cgconvert.io.signals import uninterrupted

__all__ = ["Staging", "atomic_path", "write_atomic"]

RENAME_EXCHANGE = 2
AT_FDCWD = -100
"""Constants of renameat2 (linux/fs.h, linux/fcntl.h)."""

LOCK_SECONDS = 2.0
"""How long to wait for another run's lock: the workers of a killed one hold it until they end."""


def write_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace a file by `data` at once, or leave it as it is and raise OSError.

    See `atomic_path` for `durable`.
    """
    with atomic_path(path, durable=durable) as partial:
        partial.write_bytes(data)


@contextlib.contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a path beside `path`; the file written there replaces `path` when the block ends.

    Several processes may do so at once: one waits for the other. A file that a killed run has left
    there is overwritten. Where the block fails, `path` stays as it is.

    Args:
        path: The file. A link stays one, and the file it points to is replaced.
        durable: Whether the data is synced to the disk before the rename. A cache file that checks
            itself when it is read needs no sync.
    """
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name}.cgconvert-tmp")
    lock = _open_locked(partial)
    try:
        yield partial
        if durable:
            _sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        os.close(lock)


def _open_locked(path: Path) -> int:
    """Open and lock the file at `path`, which another run may have renamed after it was opened."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


class Staging:
    """A hidden folder beside the target, which one run at a time holds.

    `content` is what will become the target, `journal` tells how far it is, `steps` holds
    intermediate results that are computed before anything is written.

    Leaving the context without a commit removes the folder, and parent folders made for it. What an
    interrupted run left is removed by the next, unless `resume`: then it is taken over, and kept
    again on an interruption or a failing disk. The target itself is changed by the final rename
    only.
    """

    def __init__(self, output: Path, *, force: bool, resume: bool = False) -> None:
        self.output = Path(os.path.abspath(output))
        self.force, self.resume = force, resume
        self.folder = self.output.parent / f".{self.output.name}.cgconvert-tmp"
        self.content = self.folder / "content"
        self.journal = self.folder / "journal"
        self.steps = self.folder / "steps"
        self._made: list[Path] = []
        self._lock = -1

    def __enter__(self) -> Staging:
        try:
            with uninterrupted():
                self._acquire()
            self._put_back()
            if os.path.lexists(self.output) and not self.force:
                raise UsageError(f"{self.output} exists; give `force=True` to replace it")
            if not self.resume:
                self.clear()
                shutil.rmtree(self.steps, ignore_errors=True)
            self.content.mkdir(exist_ok=True)
        except BaseException as error:
            if self._lock >= 0:
                self._release(keep=self.resume and (self.journal.exists() or self.steps.exists()))
            else:
                with contextlib.suppress(OSError):
                    self.folder.rmdir()
                self._remove_made()
            if isinstance(error, OSError):
                raise OutputError(f"{self.output}: cannot be written: {error.strerror}") from error
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release(
            keep=self.resume and isinstance(error, Interrupted | KeyboardInterrupt | OSError)
        )

    def clear(self) -> None:
        """Remove what an interrupted run has written."""
        self.journal.unlink(missing_ok=True)
        shutil.rmtree(self.content, ignore_errors=True)

    def commit_folder(self) -> None:
        """Make the staged folder the target in one step; an old target is removed after it."""
        self._settle()
        if os.path.lexists(self.output):
            _exchange(self.content, self.output, self._aside)
        else:
            self.content.rename(self.output)
        self._committed()

    def commit_files(self) -> None:
        """Move the staged files to their places, the target itself last.

        Where the target exists, the files beside the old one are removed first: at no time does a
        file lie beside the manifest of another.
        """
        self._settle()
        target = self.content / self.output.name
        beside = [file for file in sorted(self.content.iterdir()) if file != target]
        order = [*beside, target]
        if os.path.lexists(self.output):
            order.reverse()
            for file in beside:
                self.output.with_name(file.name).unlink(missing_ok=True)
        for file in order:
            file.replace(self.output.with_name(file.name))
        self._committed()

    def _settle(self) -> None:
        """Sync what is staged, and remove the journal, which does not fit an old target."""
        _sync_tree(self.content)
        self.journal.unlink(missing_ok=True)
        _sync(self.folder)

    @property
    def _aside(self) -> Path:
        return self.folder / "replaced"

    def _acquire(self) -> None:
        """Make the folder and lock it, though another run may be removing it at this moment.

        Forked workers share the lock: it is held as long as one of them can write.
        """
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            missing = [p for p in (self.folder, *self.folder.parents) if not p.exists()]
            self._made += [folder for folder in missing[1:] if folder not in self._made]
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.folder.is_symlink():
                raise OSError(errno.ELOOP, f"{self.folder.name} is a link")
            try:
                self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat((self.folder / "lock").stat(), os.fstat(self._lock)):
                    return
            except FileNotFoundError:
                pass
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    os.close(self._lock)
                    self._lock = -1
                    raise UsageError(f"{self.output} is being written by another run") from error
                time.sleep(0.01)
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    def _put_back(self) -> None:
        """Restore the old target that a run left aside when killed between the two renames."""
        if self._aside.exists():
            if os.path.lexists(self.output):
                shutil.rmtree(self._aside)
            else:
                self._aside.rename(self.output)

    @uninterrupted()
    def _release(self, *, keep: bool) -> None:
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._remove_made()
        fcntl.flock(self._lock, fcntl.LOCK_UN)  # workers that are kept share it
        os.close(self._lock)

    def _remove_made(self) -> None:
        """Remove empty folders that were made for an output that was not written."""
        for folder in sorted(self._made, key=lambda f: -len(f.parts)):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _committed(self) -> None:
        for folder in {self.output.parent, *(made.parent for made in self._made)}:
            _sync(folder)


def _exchange(new: Path, old: Path, aside: Path) -> None:
    """Swap two folders in one step; where the system cannot, move `old` to `aside` first."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        status = libc.renameat2(
            AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), RENAME_EXCHANGE
        )
        if status == 0:
            return
        if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(old))
    old.rename(aside)
    new.rename(old)


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
