"""Outputs that appear complete or not at all: they are written beside their path, then renamed.

`Staging` is for artefacts, which take long to write, so that an interrupted run can be continued.
`write_atomic` and `atomic_path` are for a single small file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from cgconvert.errors import Interrupted, OutputError, UsageError
from cgconvert.io.signals import uninterrupted
from cgconvert.io.system.files import sync
from cgconvert.io.system.locks import FileLock
from cgconvert.io.system.names import exchange, rename

__all__ = ["Staging", "atomic_path", "write_atomic"]

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
    partial = path.with_name(f".{path.name}.cgconvert-tmp")
    # A file of its own, because Windows does not rename a file that is open.
    lock = FileLock(path.with_name(f".{path.name}.lock.cgconvert-tmp"))
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


class Staging:
    """A hidden staging folder beside the output, which one run at a time may use.

    The output itself is changed by the final rename only. Leaving the context without a commit
    removes the staging folder, and the parent folders that were made for it.

    Args:
        output: Path of the artefact, a folder or a file.
        force: Whether an existing output may be replaced.
        resume: Whether to continue with the staging folder that an interrupted run has left. If
            this run is interrupted too, or the disk fails, the folder is kept again. If false, what
            an interrupted run has left is removed.

    Attributes:
        content: The folder that will become the output, or that holds the files that will.
        journal: The file that records how much of the content is written.
        steps: The folder for intermediate results, computed before anything is written.
    """

    def __init__(self, output: Path, *, force: bool, resume: bool = False) -> None:
        self.output = Path(os.path.abspath(output))
        self.force, self.resume = force, resume
        self.folder = self.output.parent / f".{self.output.name}.cgconvert-tmp"
        self.content = self.folder / "content"
        self.journal = self.folder / "journal"
        self.steps = self.folder / "steps"
        self._made_folders: list[Path] = []
        self._lock = FileLock(self.folder / "lock")

    def __enter__(self) -> Staging:
        try:
            with uninterrupted():
                self._acquire()
            self._restore_replaced()
            if os.path.lexists(self.output) and not self.force:
                raise UsageError(f"{self.output} exists; give `force=True` to replace it")
            if not self.resume:
                self.clear()
                shutil.rmtree(self.steps, ignore_errors=True)
            self.content.mkdir(exist_ok=True)
        except BaseException as error:
            if self._lock.is_held:
                self._release(keep=self.resume and (self.journal.exists() or self.steps.exists()))
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
        self._release(
            keep=self.resume and isinstance(error, Interrupted | KeyboardInterrupt | OSError)
        )

    def clear(self) -> None:
        """Remove the content and the journal that an interrupted run has left."""
        self.journal.unlink(missing_ok=True)
        shutil.rmtree(self.content, ignore_errors=True)

    def commit_folder(self) -> None:
        """Make the content the output, in one step.

        An earlier output comes into the staging folder by that step, and is removed with it.
        """
        self._sync_content()
        if os.path.lexists(self.output):
            exchange(self.content, self.output, self._replaced)
        else:
            rename(self.content, self.output)
        self._sync_parents()

    def commit_files(self) -> None:
        """Move the output, which is a file, and the files beside it (its manifest) to their places.

        The output itself comes last. If there is an earlier output, the files beside it are removed
        first and the new ones come last: at no time does a file lie beside another's manifest.
        """
        self._sync_content()
        output = self.content / self.output.name
        beside = [file for file in sorted(self.content.iterdir()) if file != output]
        ordered = [*beside, output]
        if os.path.lexists(self.output):
            ordered.reverse()
            for file in beside:
                self.output.with_name(file.name).unlink(missing_ok=True)
        for file in ordered:
            rename(file, self.output.with_name(file.name))
        self._sync_parents()

    def _sync_content(self) -> None:
        """Sync the content, then remove the journal.

        An earlier output may take the place of the content, and the journal does not describe it.
        """
        _sync_tree(self.content)
        self.journal.unlink(missing_ok=True)
        sync(self.folder)

    @property
    def _replaced(self) -> Path:
        """The place of the earlier output if the system cannot exchange two folders."""
        return self.folder / "replaced"

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
            if self.folder.is_symlink():
                raise OSError(errno.ELOOP, f"{self.folder.name} is a link")
            try:
                self._lock.acquire(wait=False)
                return
            except FileNotFoundError:
                pass  # another run has removed the folder
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise UsageError(f"{self.output} is being written by another run") from error
                time.sleep(0.01)

    def _restore_replaced(self) -> None:
        """Move the earlier output back if a run was killed between the two renames of _exchange."""
        if self._replaced.exists():
            if os.path.lexists(self.output):
                shutil.rmtree(self._replaced)
            else:
                rename(self._replaced, self.output)

    @uninterrupted()
    def _release(self, *, keep: bool) -> None:
        """Unlock the staging folder, and remove it unless `keep`."""
        if keep:
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
