"""Outputs that appear complete or not at all: they are written beside their path, then renamed.

`Staging` is for artefacts, which take long to write, so that an interrupted run can be continued,
and for all else that may lie where other users can write.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from cgconvert.errors import InputError, OutputError, UsageError
from cgconvert.io.commit import SUFFIX, Commit, Guard, staging_name
from cgconvert.io.signals import uninterrupted
from cgconvert.io.system.files import sync
from cgconvert.io.system.locks import FileLock
from cgconvert.io.system.open_folder import MadeFolder, OpenFolder
from cgconvert.io.system.owners import is_open_to_others, is_users

__all__ = ["Staging", "is_locked", "is_staging_folder", "is_temporary", "staging_folder"]

FOLDERS = {"content", "steps", "replaced"}
FILES = {"lock", "journal", "commit", "commit-new", "commit-verified"}
"""All that a staging folder can hold. The lock comes first and goes last."""

LOCK_SECONDS = 2.0
"""How long to wait for the lock of another run. If that run was killed, its workers hold the lock
until they end, which takes a moment."""

MAX_ATTEMPTS = 100
"""How often a folder is made again that is not there a moment later. /proc lets none be made."""


def is_locked(folder: Path) -> bool:
    """Whether a run is writing what is in a staging folder."""
    lock = FileLock(folder / "lock")
    if not lock.path.exists():
        return False
    try:
        lock.acquire(make=False)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    lock.release()
    return False


def is_temporary(name: str) -> bool:
    """Whether a name is one that cgconvert gives to what is temporary."""
    return name.startswith(".") and name.endswith(SUFFIX) and len(name) > len(SUFFIX) + 1


def is_staging_folder(path: Path) -> bool:
    """Whether a path is a folder of this user's alone, with nothing in it but what `Staging` makes.

    It is empty, or has a lock or another file of its own, whatever moment the run was killed at.
    """
    try:
        if not is_temporary(path.name):
            return False
        folder = OpenFolder.nofollow(path)
        try:
            return not _foreign_part(folder.path)
        finally:
            folder.close()
    except OSError:
        return False


def _foreign_part(folder: Path) -> str:
    """Say what in an open folder is no staging folder's, or may be another user's work; or ""."""
    foreign = "holds something else or belongs to another user"
    if not is_users(folder.stat()):
        return foreign
    entries = {path.name: path.lstat() for path in folder.iterdir()}
    if "commit" in entries:
        entries.pop("content", None)  # the commit may have exchanged it with what lay at the output
    if (
        not all(map(is_users, entries.values()))
        or (entries and not entries.keys() & FILES)
        or not entries.keys() <= FOLDERS | FILES
        or any(
            not (stat.S_ISDIR if name in FOLDERS else stat.S_ISREG)(entry.st_mode)
            or (name in FILES and entry.st_nlink > 1)
            for name, entry in entries.items()
        )
    ):
        return foreign
    # On a disk without modes the lock, which is made private, seems to be open to others too.
    has_modes = "lock" not in entries or not is_open_to_others(entries["lock"])
    if entries and has_modes and is_open_to_others(folder.stat()):
        return "could be written by other users"
    return ""


def staging_folder(output: Path) -> Path:
    """The hidden folder beside an output in which it is written."""
    output = Path(os.path.abspath(output))
    return output.parent / staging_name(output)


class Staging:
    """A hidden staging folder beside the output, which one run of one user at a time may use.

    The folder of the output and the staging folder are opened once. Another user who exchanges
    their names meanwhile reaches nothing of this run's and leads it nowhere else.

    The output itself is changed by the commit only. Leaving the context without a commit removes
    the staging folder, and the parent folders that were made for it, unless work is kept.

    Args:
        output: Path of the artefact, a folder or a file.
        guard: Decides whether what lies at the output may be replaced.
        has_work: Whether a run could go on with what lies in a staging folder. Then the folder is
            kept when this run is interrupted, or the disk fails, and the next run finds it. If
            None, nothing is kept, and what an interrupted run has left is removed.

    Attributes:
        folder: The staging folder, by the name that others see.
        is_kept: Whether the work was kept when the context was left.
    """

    def __init__(
        self, output: Path, guard: Guard, has_work: Callable[[Path], bool] | None = None
    ) -> None:
        self.output = Path(os.path.abspath(output))
        self.guard, self.has_work = guard, has_work
        self.folder = staging_folder(self.output)
        self.is_kept = False
        self._made_folders: list[MadeFolder] = []
        self._parent: OpenFolder | None = None
        self._opened: OpenFolder | None = None
        self._lock: FileLock
        self._commit: Commit

    @property
    def content(self) -> Path:
        """The folder that will become the output, or that holds the files that will."""
        return self._path / "content"

    @property
    def journal(self) -> Path:
        """The file that records how much of the content is written."""
        return self._path / "journal"

    @property
    def steps(self) -> Path:
        """The folder for intermediate results, computed before anything is written."""
        return self._path / "steps"

    @property
    def _path(self) -> Path:
        """The path of the staging folder as long as the context is open."""
        assert self._opened is not None
        return self._opened.path

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
            if self._opened is not None:
                self._release(keep=self._has_work())
            else:
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
        return self.has_work is not None and self.has_work(self._path)

    def _acquire(self) -> None:
        """Make the staging folder and lock it; try again if another run removes it meanwhile.

        Forked workers share the lock, so it is held as long as one of them can write.

        Raises UsageError if another run holds the lock for longer than LOCK_SECONDS, or if the
        folder is not this user's alone.
        """
        deadline = time.monotonic() + LOCK_SECONDS
        for attempt in itertools.count():
            try:
                self._open()
                return
            except FileNotFoundError:  # another run has removed the folder
                if attempt > MAX_ATTEMPTS:
                    raise
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise UsageError(f"{self.output} is being written by another run") from error
                time.sleep(0.01)

    def _open(self) -> None:
        """Open or make the folder of the output, and in it the staging folder; lock that."""
        parent = OpenFolder.at(self.output.parent, self._made_folders)
        try:
            folder = self._private_folder(parent)
            try:
                self._lock = FileLock(folder.path / "lock")
                self._lock.acquire()
            except BaseException:
                folder.close()
                with contextlib.suppress(OSError):  # it is empty if the lock cannot be made
                    (parent.path / self.folder.name).rmdir()
                raise
        except BaseException:
            parent.close()
            raise
        self._parent, self._opened = parent, folder
        self._commit = Commit(folder.path, parent.path / self.output.name, self.output, self.guard)

    def _private_folder(self, parent: OpenFolder) -> OpenFolder:
        """Open the staging folder; raises UsageError if it is not this user's alone."""
        reason = "is no folder"
        with contextlib.suppress(NotADirectoryError):
            folder = parent.private(self.folder.name)
            try:
                reason = _foreign_part(folder.path)
                if not reason:
                    folder.close_to_others()
                    # Once more: others could write in an empty folder until it was closed.
                    reason = _foreign_part(folder.path)
                if not reason:
                    return folder
            except BaseException:
                folder.close()
                raise
            folder.close()
        raise UsageError(
            f"{self.folder}: is needed for what is not complete yet, and {reason}; move it away or "
            "choose another `output`"
        )

    @uninterrupted()
    def _release(self, *, keep: bool) -> None:
        """Unlock the staging folder, and remove it unless `keep`, or a commit is not finished."""
        assert self._parent is not None
        assert self._opened is not None
        self.is_kept = keep
        place = self._parent.path / self.folder.name
        if keep or self._commit.is_open:
            self._lock.release()
        else:
            with contextlib.suppress(OSError):
                for path in self._path.iterdir():
                    if path != self._lock.path:
                        _remove(path)
            self._lock.release(remove=True)  # apart from the rest: Windows removes no open file
            with contextlib.suppress(OSError):  # another run may have begun here
                if self._opened.is_at(place):
                    place.rmdir()
        self._opened.close()
        self._parent.close()
        self._opened = self._parent = None
        if keep:
            for folder in self._made_folders:
                folder.parent.close()
            self._made_folders.clear()
        else:
            self._remove_made_folders()

    def _remove_made_folders(self) -> None:
        """Remove the parent folders that were made, as far as they are empty, the deepest first."""
        while self._made_folders:
            self._made_folders.pop().remove()

    def _sync_parents(self) -> None:
        """Sync the folders in which names have changed, so that the renames survive a crash."""
        assert self._parent is not None
        for folder in (self._parent, *(made.parent for made in self._made_folders)):
            sync(folder.path)


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
