"""The commit of an output: finished files take their places, and no crash on the way loses any.

What lies at the output is moved into the staging folder, checked there once more, and removed last.
Nothing is ever renamed over: what another program puts at the output meanwhile stays, or is put
back. A record in the staging folder says which file or folder is the new one, so the next run can
finish or undo a commit that a crash has cut short.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cgconvert.errors import InputError, OutputError, UsageError
from cgconvert.io.reading import read_bytes
from cgconvert.io.signals import uninterrupted
from cgconvert.io.system.files import sync
from cgconvert.io.system.names import exchange, rename, rename_new

__all__ = ["SUFFIX", "Anything", "Commit", "Guard", "Nothing", "staging_name"]

SUFFIX = ".cgconvert-tmp"
"""The end of the name of everything temporary, which begins with a dot."""

INVALID = (ValueError, TypeError, KeyError, AttributeError)
"""What reading a record raises that has not the fields of one."""

ADVICE = "choose another `output`"


class Guard(Protocol):
    """Decides what a commit may replace."""

    def check(self, output: Path) -> bool:
        """Whether something lies at `output`, which may be replaced.

        Raises UsageError if something does that may not.
        """

    def is_own(self, path: Path) -> bool:
        """Whether what was moved to `path`, and what was moved beside it, may be removed.

        There may be no earlier output at `path` itself, only its manifest beside it.
        """


class Anything:
    """A guard for places that are cgconvert's alone, as its cache is: anything is replaced."""

    def check(self, output: Path) -> bool:
        return os.path.lexists(output)

    def is_own(self, path: Path) -> bool:
        return True


class Nothing:
    """A guard that replaces nothing."""

    def check(self, output: Path) -> bool:
        if os.path.lexists(output):
            raise UsageError(f"{output} exists; choose another place")
        return False

    def is_own(self, path: Path) -> bool:
        return False


class Commit:
    """Puts finished files in the place of an output.

    Args:
        folder: The staging folder, on the disk of the output.
        place: The path of the output, a folder or a file, by which it is renamed.
        output: The same path as the user wrote it, which is checked and shown.
        guard: Decides what may be replaced.
    """

    def __init__(self, folder: Path, place: Path, output: Path, guard: Guard) -> None:
        self.folder, self.place, self.output, self.guard = folder, place, output, guard
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
        self._start(new, beside)
        try:
            is_replacing = self.guard.check(self.output)
            self.replaced.mkdir()
            for file in beside:
                place = self.place.with_name(file.name)
                if os.path.lexists(place):
                    rename(place, self.replaced / file.name)
            if is_replacing:
                exchange(new, self.place, self._earlier)
            else:
                rename_new(new, self.place)
        except (OSError, UsageError) as error:
            self.settle()
            if isinstance(error, FileExistsError):
                raise OutputError(f"{self.output}: was made meanwhile; {ADVICE}") from error
            if isinstance(error, OSError):
                raise
            raise OutputError(str(error)) from error
        if not self.settle():
            raise OutputError(
                f"{self.output}: was changed while it was being replaced, and was left as it "
                f"was; {ADVICE}"
            )

    def settle(self) -> bool:
        """Finish a commit, or undo it; return whether the new output is in its place.

        A commit is finished if the new output was in its place already. Without a record there is
        nothing to do.
        """
        record = self._read()
        if record is None:
            return False
        new = self.folder / record["new"]
        if not self._verified.exists():
            is_placed = _inode(self.place) == record["inode"]
            if is_placed and _inode(new) == record["inode"]:  # a second name, see rename_new
                new.unlink()
            elif os.path.lexists(new) and _inode(new) != record["inode"]:  # they were exchanged
                rename(new, self._earlier)
            if not is_placed or not self._is_removable():
                self._undo(new, record)
                return False
            rename(self._record, self._verified)
        if new.parent != self.folder:  # the output is a file
            try:
                for file in sorted(new.parent.iterdir()):
                    rename_new(file, self.place.with_name(file.name))
            except FileExistsError:
                rename(self._verified, self._record)
                self._undo(new, record)
                return False
        sync(self.place.parent)
        shutil.rmtree(self.replaced, ignore_errors=True)
        (self.folder / "journal").unlink(missing_ok=True)
        self._verified.unlink()
        return True

    @property
    def is_open(self) -> bool:
        """Whether a commit is neither finished nor undone; the staging folder must stay then."""
        return self._record.exists() or self._verified.exists()

    @property
    def _earlier(self) -> Path:
        """The place of an earlier output in the staging folder."""
        return self.replaced / self.place.name

    def _is_removable(self) -> bool:
        """Whether all that was moved into the staging folder may be removed."""
        is_empty = not self.replaced.is_dir() or not any(self.replaced.iterdir())
        return is_empty or self.guard.is_own(self._earlier)

    def _start(self, new: Path, beside: Sequence[Path]) -> None:
        """Record what is going to be moved, before anything is."""
        record = {
            "new": new.relative_to(self.folder).as_posix(),
            "inode": _inode(new),
            "beside": {file.name: _inode(file) for file in beside},
        }
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
        with contextlib.suppress(InputError, ValueError, TypeError, KeyError, AttributeError):
            if not path.exists():
                return None
            record: dict[str, Any] = json.loads(read_bytes(path))
            if _is_valid(record):
                return record
        raise OutputError(
            f"{self._shown(path)}: is damaged; move away what you need of "
            f"{self._shown(self.folder)}, then remove it"
        )

    def _undo(self, new: Path, record: Mapping[str, Any]) -> None:
        """Move the new files back, then what was taken from the output and beside it.

        Raises OutputError if something else lies there by now; the staging folder keeps the rest.
        """
        for name, inode in record["beside"].items():
            self._take(self.place.with_name(name), new.with_name(name), inode)
        if os.path.lexists(self._earlier) and _inode(self.place) == record["inode"]:
            with contextlib.suppress(FileExistsError):
                exchange(self._earlier, self.place, new)
            if _inode(self._earlier) == record["inode"]:
                rename(self._earlier, new)
        self._take(self.place, new, record["inode"])
        if self.replaced.is_dir():
            for path in sorted(self.replaced.iterdir()):
                try:
                    rename_new(path, self.place.with_name(path.name))
                except FileExistsError as error:
                    raise OutputError(
                        f"{self.output.with_name(path.name)}: is in the way of what lies in "
                        f"{self._shown(path)}; move it away"
                    ) from error
            self.replaced.rmdir()
        self._record.unlink()

    def _take(self, place: Path, new: Path, inode: int) -> None:
        """Move a new file or folder back from its place, if it lies there."""
        if _inode(place) != inode:
            return
        rename(place, new)
        if _inode(new) != inode:  # another program was quicker; this goes back as well
            self.replaced.mkdir(exist_ok=True)
            rename(new, self.replaced / place.name)

    def _shown(self, path: Path) -> Path:
        """The path of something in the staging folder, for messages."""
        return self.output.parent / staging_name(self.output) / path.relative_to(self.folder)


def staging_name(output: Path) -> str:
    """The name of the hidden folder beside an output in which it is written."""
    return f".{output.name}{SUFFIX}"


def _is_valid(record: dict[str, Any]) -> bool:
    """Whether a record has all fields, and every path in it leads into the staging folder."""
    beside = record.setdefault("beside", {})  # earlier versions wrote none
    new = Path(record["new"])
    return (
        all(isinstance(inode, int) for inode in (record["inode"], *beside.values()))
        and record["new"] != ""
        and not new.is_absolute()
        and ".." not in new.parts
        and all(Path(name).name == name for name in beside)
    )


def _inode(path: Path) -> int:
    """Number of the inode of a file or folder, which a rename keeps; 0 if there is none."""
    try:
        return path.lstat().st_ino
    except FileNotFoundError:
        return 0
