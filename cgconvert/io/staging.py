"""Outputs that appear complete or not at all: they are written beside their path, then renamed.

`Staging` is for artefacts, which take long to write, so that an interrupted run can be continued.
`write_atomic` and `atomic_path` are for a single small file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from cgconvert.errors import InputError, OutputError, UsageError
from cgconvert.io.commit import Commit, Guard
from cgconvert.io.signals import uninterrupted
from cgconvert.io.system.files import sync
from cgconvert.io.system.locks import FileLock
from cgconvert.io.system.names import is_users, rename

__all__ = [
    "SUFFIX",
    "Staging",
    "atomic_path",
    "is_locked",
    "is_partial",
    "is_staging_folder",
    "is_temporary",
    "remove_partial",
    "staging_folder",
    "write_atomic",
]

SUFFIX = ".cgconvert-tmp"
"""The end of the name of everything temporary, which begins with a dot."""

LOCK_SUFFIX = f".lock{SUFFIX}"

FOLDERS = {"content", "steps", "replaced"}
FILES = {"lock", "journal", "commit", "commit-new", "commit-verified"}
"""All that a staging folder can hold. The lock comes first and goes last."""

LOCK_SECONDS = 2.0
"""How long to wait for the lock of another run. If that run was killed, its workers hold the lock
until they end, which takes a moment."""


def write_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace the content of a file by `data` in one step; if OSError is raised, it is unchanged.

    `durable` has the same meaning as in `atomic_path`.
    """
    with atomic_path(path, durable=durable) as partial:
        partial.write_bytes(data)


@contextlib.contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file written there replaces `path` at the end.

    If the block raises an error, `path` stays as it is. Several processes may replace the same file
    at once: one waits for the other. A temporary file that a killed run has left is overwritten.

    Args:
        path: The file to replace. If it is a link, the file that it points to is replaced.
        durable: Whether the data is synced to the disk before the rename. A cache file that is
            checked whenever it is read needs no sync.
    """
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name}{SUFFIX}")
    # A file of its own, because Windows does not rename a file that is open.
    lock = FileLock(path.with_name(f".{path.name}{LOCK_SUFFIX}"))
    try:
        with uninterrupted():
            lock.acquire()
        partial.unlink(missing_ok=True)  # it may even be a link
        yield partial
        if durable:
            sync(partial)
        rename(partial, path)
    except BaseException:
        if lock.is_held:
            partial.unlink(missing_ok=True)
        raise
    finally:
        lock.release(remove=True)


def is_locked(path: Path) -> bool:
    """Whether a run is writing what is temporary at `path`: a staging folder or a file."""
    lock = FileLock(_lock_path(path))
    if not lock.path.exists():
        return False
    try:
        lock.acquire(wait=False)
    except OSError:
        return True
    lock.release()
    return False


def remove_partial(path: Path) -> bool:
    """Remove the temporary file of `atomic_path`, or its lock; return False if a run uses it."""
    lock = FileLock(_lock_path(path))
    try:
        lock.acquire(wait=False)
    except OSError:
        return False
    if path != lock.path:
        path.unlink(missing_ok=True)
    lock.release(remove=True)
    return True


def _lock_path(path: Path) -> Path:
    """The lock of a staging folder or of a temporary file; a lock's own path is that path."""
    if path.is_dir():
        return path / "lock"
    if path.name.endswith(LOCK_SUFFIX):
        return path
    return path.with_name(path.name.removesuffix(SUFFIX) + LOCK_SUFFIX)


def is_temporary(name: str) -> bool:
    """Whether a name is one that cgconvert gives to what is temporary."""
    return name.startswith(".") and name.endswith(SUFFIX) and len(name) > len(SUFFIX) + 1


def is_staging_folder(path: Path) -> bool:
    """Whether a path is a folder of this user's with nothing in it but what `Staging` makes.

    It is empty, or has a lock or another file of its own, whatever moment the run was killed at.
    """
    try:
        if not is_temporary(path.name) or not stat.S_ISDIR(path.lstat().st_mode):
            return False
        modes = {entry.name: entry.lstat().st_mode for entry in path.iterdir()}
    except OSError:
        return False
    return (
        is_users(path)
        and (not modes or bool(modes.keys() & FILES))
        and modes.keys() <= FOLDERS | FILES
        and all((stat.S_ISDIR if n in FOLDERS else stat.S_ISREG)(mode) for n, mode in modes.items())
    )


def is_partial(path: Path) -> bool:
    """Whether a path is a temporary file of `atomic_path`, beside its lock, or is that lock."""
    try:
        if not is_temporary(path.name) or path.is_dir():
            return False
        files = {path, _lock_path(path)}
        modes = [file.lstat() for file in files]
    except OSError:
        return False
    return (
        all(stat.S_ISREG(s.st_mode) for s in modes)
        and all(map(is_users, files))
        and _lock_path(path).lstat().st_size == 0
    )


def staging_folder(output: Path) -> Path:
    """The hidden folder beside an output in which it is written."""
    output = Path(os.path.abspath(output))
    return output.parent / f".{output.name}{SUFFIX}"


class Staging:
    """A hidden staging folder beside the output, which one run at a time may use.

    The output itself is changed by the commit only. Leaving the context without a commit removes
    the staging folder, and the parent folders that were made for it, unless work is kept.

    Args:
        output: Path of the artefact, a folder or a file.
        guard: Decides whether what lies at the output may be replaced.
        has_work: Whether a run could go on with what lies in a staging folder. Then the folder is
            kept when this run is interrupted, or the disk fails, and the next run finds it. If
            None, nothing is kept, and what an interrupted run has left is removed.

    Attributes:
        folder: The staging folder.
        content: The folder that will become the output, or that holds the files that will.
        journal: The file that records how much of the content is written.
        steps: The folder for intermediate results, computed before anything is written.
        is_kept: Whether the work was kept when the context was left.
    """

    def __init__(
        self, output: Path, guard: Guard, has_work: Callable[[Path], bool] | None = None
    ) -> None:
        self.output = Path(os.path.abspath(output))
        self.guard, self.has_work = guard, has_work
        self.folder = staging_folder(self.output)
        self.content = self.folder / "content"
        self.journal = self.folder / "journal"
        self.steps = self.folder / "steps"
        self.is_kept = False
        self._commit = Commit(self.folder, self.output, guard)
        self._made_folders: list[Path] = []
        self._lock = FileLock(self.folder / "lock")

    def __enter__(self) -> Staging:
        try:
            with uninterrupted():
                self._acquire()
                self._commit.settle()
            self.guard.check(self.output)
            if self.has_work is None:
                self.clear()
                shutil.rmtree(self.steps, ignore_errors=True)
            self.content.mkdir(exist_ok=True)
        except BaseException as error:
            if self._lock.is_held:
                self._release(keep=self._has_work())
            else:
                with contextlib.suppress(OSError):
                    self.folder.rmdir()
                self._remove_made_folders()
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
        was_stopped = error is not None and not isinstance(error, InputError | UsageError)
        self._release(keep=was_stopped and self._has_work())

    def remove(self) -> bool:
        """Remove the staging folder that an interrupted run has left; return whether it is gone.

        A commit that was cut short is finished or undone first. What a run is writing stays.
        """
        try:
            self._acquire()
        except UsageError:
            return False
        try:
            self._commit.settle()
        finally:
            self._release(keep=False)
        return not self.folder.exists()

    def clear(self) -> None:
        """Remove the content and the journal that an interrupted run has left."""
        self.journal.unlink(missing_ok=True)
        shutil.rmtree(self.content, ignore_errors=True)

    def commit_folder(self) -> None:
        """Make the content the output, in one step.

        An earlier output comes into the staging folder, and is removed with it.

        Raises OutputError if what lies at the output may not be replaced.
        """
        _sync_tree(self.content)
        self._commit.run(self.content)
        self._sync_parents()

    def commit_files(self) -> None:
        """Move the output, which is a file, and the files beside it (its manifest) to their places.

        Raises OutputError if what lies at the output may not be replaced.
        """
        _sync_tree(self.content)
        output = self.content / self.output.name
        self._commit.run(output, [file for file in self.content.iterdir() if file != output])
        self._sync_parents()

    def _has_work(self) -> bool:
        return self.has_work is not None and self.has_work(self.folder)

    def _acquire(self) -> None:
        """Make the staging folder and lock it; try again if another run removes it meanwhile.

        Forked workers share the lock, so it is held as long as one of them can write.

        Raises UsageError if another run holds the lock for longer than LOCK_SECONDS.
        """
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            missing = [p for p in (self.folder, *self.folder.parents) if not p.exists()]
            self._made_folders += [
                folder for folder in missing[1:] if folder not in self._made_folders
            ]
            self.folder.mkdir(parents=True, exist_ok=True)
            if not is_staging_folder(self.folder) and self.folder.exists():
                raise UsageError(
                    f"{self.folder}: is needed for what is not complete yet, and holds something "
                    "else or belongs to another user; move it away or choose another `output`"
                )
            try:
                self._lock.acquire(wait=False)
                return
            except FileNotFoundError:
                pass  # another run has removed the folder
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise UsageError(f"{self.output} is being written by another run") from error
                time.sleep(0.01)

    @uninterrupted()
    def _release(self, *, keep: bool) -> None:
        """Unlock the staging folder, and remove it unless `keep`, or a commit is not finished."""
        self.is_kept = keep
        if keep or self._commit.is_open:
            self._lock.release()
            return
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                if path != self._lock.path:
                    _remove(path)
        self._lock.release(remove=True)  # apart from the rest: Windows removes no open file
        with contextlib.suppress(OSError):  # another run may have begun here
            self.folder.rmdir()
        self._remove_made_folders()

    def _remove_made_folders(self) -> None:
        """Remove the parent folders that were made, as far as they are empty, the deepest first."""
        for folder in sorted(self._made_folders, key=lambda f: -len(f.parts)):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _sync_parents(self) -> None:
        """Sync the folders in which names have changed, so that the renames survive a crash."""
        for folder in {self.output.parent, *(made.parent for made in self._made_folders)}:
            sync(folder)


def _remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _sync_tree(folder: Path) -> None:
    """Sync everything in a folder, and the folder."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)
