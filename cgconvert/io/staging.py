"""Commit or nothing: everything is written beside the target, then renamed over it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
from pathlib import Path
from types import TracebackType

from cgconvert.errors import Interrupted, OutputError, UsageError
from cgconvert.io.uninterrupted import uninterrupted

__all__ = ["Staging"]

RENAME_EXCHANGE = 2
AT_FDCWD = -100


class Staging:
    """A hidden folder beside the target, held by one run at a time. `steps` is for what has to be
    computed before anything is written.

    Leaving the context without a commit removes it, and folders made for it; what an interrupted
    run left is removed by the next. With `resume` it is taken over, and kept on an interruption or
    a failing disk. The target itself is touched by nothing but the final rename.
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
                raise UsageError(f"{self.output} exists; give --force to replace it")
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
        """Forget what an interrupted run has written."""
        self.journal.unlink(missing_ok=True)
        shutil.rmtree(self.content, ignore_errors=True)

    def commit_folder(self) -> None:
        """The staged folder becomes the target, at once; an old target goes after that."""
        self._settle()
        if os.path.lexists(self.output):
            _exchange(self.content, self.output, self._aside)
        else:
            self.content.rename(self.output)
        self._committed()

    def commit_files(self) -> None:
        """The staged files appear beside the target, the target itself last.

        Where the target exists, what is beside the old one goes first: at no time does a file lie
        beside a manifest of another.
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
        """What is staged is on the disk, and nothing takes what is there after a swap for it."""
        _sync_tree(self.content)
        self.journal.unlink(missing_ok=True)
        _sync(self.folder)

    @property
    def _aside(self) -> Path:
        return self.folder / "replaced"

    def _acquire(self) -> None:
        """Make the folder and hold its lock, which another run may be taking away just now."""
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
                os.close(self._lock)
                self._lock = -1
                raise UsageError(f"{self.output} is being written by another run") from error
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    def _put_back(self) -> None:
        """A run that was killed between the two renames of `_exchange` left the old target here."""
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
        fcntl.flock(self._lock, fcntl.LOCK_UN)  # processes forked meanwhile hold it too
        os.close(self._lock)

    def _remove_made(self) -> None:
        """Folders made for an output that did not come; one with something in it stays."""
        for folder in sorted(self._made, key=lambda f: -len(f.parts)):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _committed(self) -> None:
        for folder in {self.output.parent, *(made.parent for made in self._made)}:
            _sync(folder)


def _exchange(one: Path, other: Path, aside: Path) -> None:
    """Swap two folders in one step where the system can; where it cannot, `other` goes aside."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        done = libc.renameat2(
            AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE
        )
        if done == 0:
            return
        if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))
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
