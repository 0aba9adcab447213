"""The commit of an output: finished files take their places, and no crash on the way loses any.

What lies at the output is moved into the staging folder, checked there once more, and removed last.
A record in the staging folder says which file or folder is the new one, so the next run can finish
or undo a commit that a crash has cut short.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from cgconvert.errors import OutputError, UsageError
from cgconvert.io.signals import uninterrupted
from cgconvert.io.system.files import sync
from cgconvert.io.system.names import exchange, rename, rename_new

__all__ = ["Anything", "Commit", "Guard", "Nothing"]


class Guard(Protocol):
    """Decides what a commit may replace."""

    def check(self, output: Path) -> None:
        """Raise UsageError unless nothing lies at `output`, or what does may be replaced."""

    def is_own(self, path: Path) -> bool:
        """Whether the earlier output, which was moved to `path`, may be removed."""


class Anything:
    """A guard for places that are cgconvert's alone, as its cache is: anything is replaced."""

    def check(self, output: Path) -> None: ...

    def is_own(self, path: Path) -> bool:
        return True


class Nothing:
    """A guard that replaces nothing."""

    def check(self, output: Path) -> None:
        if os.path.lexists(output):
            raise UsageError(f"{output} exists; choose another place")

    def is_own(self, path: Path) -> bool:
        return False


class Commit:
    """Puts finished files in the place of an output.

    Args:
        folder: The staging folder, on the disk of the output.
        output: Path of the artefact, a folder or a file.
        guard: Decides what may be replaced.
    """

    def __init__(self, folder: Path, output: Path, guard: Guard) -> None:
        self.folder, self.output, self.guard = folder, output, guard
        self.replaced = folder / "replaced"
        self._record, self._verified = folder / "commit", folder / "commit-verified"

    @uninterrupted()
    def run(self, new: Path, beside: Sequence[Path] = ()) -> None:
        """Move `new` to the output, and the files `beside` to their places beside it.

        At no time does a file lie beside another's manifest: that of an earlier output goes first,
        and the new one comes last.

        Raises OutputError if what lies at the output by now may not be replaced; everything is as
        before then, and `new` is where it was.
        """
        self._start(new)
        try:
            self.guard.check(self.output)
            self.replaced.mkdir()
            for file in beside:
                place = self.output.with_name(file.name)
                if os.path.lexists(place):
                    rename(place, self.replaced / file.name)
            if os.path.lexists(self.output):
                exchange(new, self.output, self.replaced / self.output.name)
            else:
                rename_new(new, self.output)
        except (OSError, UsageError) as error:
            self.settle()
            if isinstance(error, OSError):
                raise
            raise OutputError(str(error)) from error
        if not self.settle():
            raise OutputError(
                f"{self.output}: was changed while it was being replaced, and was left as it "
                "was; choose another `output`"
            )

    def settle(self) -> bool:
        """Finish a commit, or undo it; return whether the new output is in its place.

        A commit is finished if the new output was in its place already. Without a record there is
        nothing to do.
        """
        record = self._read()
        if record is None:
            return False
        new, earlier = self.folder / record["new"], self.replaced / self.output.name
        if not self._verified.exists():
            if _inode(self.output) != record["inode"]:
                self._undo()
                return False
            if _inode(new) == record["inode"]:  # a second name, see rename_new
                new.unlink()
            elif os.path.lexists(new):  # the two were exchanged
                rename(new, earlier)
            if os.path.lexists(earlier) and not self.guard.is_own(earlier):
                rename(self.output, new)
                self._undo()
                return False
            rename(self._record, self._verified)
        if new.parent != self.folder:  # the output is a file
            for file in sorted(new.parent.iterdir()):
                rename(file, self.output.with_name(file.name))
        sync(self.output.parent)
        shutil.rmtree(self.replaced, ignore_errors=True)
        (self.folder / "journal").unlink(missing_ok=True)
        self._verified.unlink()
        return True

    @property
    def is_open(self) -> bool:
        """Whether a commit is neither finished nor undone; the staging folder must stay then."""
        return self._record.exists() or self._verified.exists()

    def _start(self, new: Path) -> None:
        """Record what is going to be moved, before anything is."""
        record = {"new": new.relative_to(self.folder).as_posix(), "inode": _inode(new)}
        with contextlib.suppress(FileNotFoundError):
            self.replaced.rmdir()
        partial = self.folder / "commit-new"
        partial.write_text(json.dumps(record), encoding="utf-8")
        sync(partial)
        rename(partial, self._record)
        sync(self.folder)

    def _read(self) -> dict[str, Any] | None:
        """Read the record; None if there is none. Raises OutputError if it is no such record."""
        path = self._verified if self._verified.exists() else self._record
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError):
            if not path.exists():
                return None
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(record["inode"], int) and _is_inside(record["new"]):
                return record
        raise OutputError(
            f"{path}: is damaged; move away what you need of {self.folder}, then remove it"
        )

    def _undo(self) -> None:
        """Move what was taken from the output and beside it back to its place."""
        if self.replaced.is_dir():
            for path in sorted(self.replaced.iterdir()):
                place = self.output.with_name(path.name)
                if os.path.lexists(place):
                    raise OutputError(
                        f"{place}: is in the way of what lies in {path}; move it away"
                    )
                rename(path, place)
            self.replaced.rmdir()
        self._record.unlink()


def _is_inside(name: str) -> bool:
    """Whether a relative path leads to something in the staging folder."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts and name != ""


def _inode(path: Path) -> int:
    """Number of the inode of a file or folder, which a rename keeps; 0 if there is none."""
    return path.lstat().st_ino if os.path.lexists(path) else 0
