"""The files of an artefact that were admitted, in a private folder that a runtime opens.

A runtime trusts the folder that it is given: it looks for files by names of its own, and follows
the names that stand in files. So it never gets the artefact's folder. It gets a temporary folder of
this user alone, with links to files that were opened before they were checked, and with copies of
small ones, from which entries may have been left out. What lies beside them in the artefact's
folder is not there, and what is exchanged after the check is not what the links lead to.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from cgconvert.errors import CgconvertError, InputError
from cgconvert.io.reading import MAX_FILE_BYTES, open_unbuffered
from cgconvert.io.system.files import FileIdentity, file_identity
from cgconvert.io.system.open_file_links import Link, got_second_name, link_to_open_file

__all__ = ["AdmittedFiles", "UnchangedFiles", "admitting"]

MOST_OPEN = 256
"""The most files that are held open, of which a process may often have 1024."""

SHORTEST_REST = 8
"""If a message was cut in the middle of a path, the shortest beginning of a path to look for."""


@dataclass(frozen=True)
class _AdmittedFile:
    """A file of the artefact, and its identity when it was opened.

    Attributes:
        path: The artefact's own file.
        identity: Its device, inode, size and times then.
        file: The open file; None if it is not held open.
    """

    path: Path
    identity: FileIdentity
    file: FileIO | None = None


class AdmittedFiles:
    """The files of an artefact that a runtime may open, in a private folder.

    Args:
        artefact: The artefact, as errors name it.
        root: The folder whose files have the same names in the private folder.

    Attributes:
        folder: The private folder.
        path: What the runtime opens: the folder, or a file in it.
    """

    def __init__(self, artefact: Path, root: Path) -> None:
        self.artefact, self.root = artefact, root
        # Its real name, which the names in it have as well once libraries have resolved them.
        self.folder = Path(tempfile.mkdtemp(prefix="cgconvert-")).resolve()
        self.path = self.folder
        self._files: dict[str, _AdmittedFile] = {}
        self._remove = weakref.finalize(self, _remove, self.folder, self._files)

    @property
    def files(self) -> Mapping[str, Path]:
        """The artefact's own file by its name in the private folder, with "/" between folders."""
        return {name: file.path for name, file in self._files.items()}

    def link(self, name: str, path: Path | None = None) -> Path:
        """Link a file, of any size, into the private folder, and return its path there.

        Raises InputError if it is not there or no regular file.
        """
        path = path or self.root / name
        file, target = open_unbuffered(path), self._place(name)
        try:
            link = link_to_open_file(
                target, file.fileno(), path, by_descriptor=len(self._files) < MOST_OPEN
            )
            identity = file_identity(file.fileno())
        except BaseException:
            file.close()
            raise
        if link == Link.DESCRIPTOR:
            self._files[name] = _AdmittedFile(path, identity, file)
        else:
            file.close()
            if link == Link.NAME:  # making a name, or removing it, changes this time
                identity = identity._replace(changed=0)
            self._files[name] = _AdmittedFile(path, identity)
        return target

    def copy(self, name: str, path: Path | None = None) -> Path:
        """Copy a small file into the private folder, and return its path there.

        Raises InputError if it is not there, no regular file, or too large.
        """
        path = path or self.root / name
        with open_unbuffered(path) as file:
            self._files[name] = _AdmittedFile(path, file_identity(file.fileno()))
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise InputError(f"{path}: too large for any such file of a checkpoint")
        target = self._place(name)
        target.write_bytes(data)
        return target

    def copy_present(self, names: Iterable[str]) -> list[str]:
        """Copy those of the files that the artefact has, and return their names."""
        present = [name for name in names if (self.root / name).is_file()]
        for name in present:
            self.copy(name)
        return present

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file into the private folder, in the place of the artefact's own."""
        text = json.dumps(content, ensure_ascii=False)
        self._place(name).write_text(text, encoding="utf-8", errors="surrogatepass")

    def withhold(self, name: str) -> None:
        """Remove a file that was admitted from the private folder."""
        (self.folder / name).unlink()

    def check_unchanged(self) -> None:
        """Raise InputError if a file is not what it was when it was opened."""
        for admitted in self._files.values():
            _check_unchanged(admitted.path, admitted.identity)

    def with_artefact_paths(self, text: str) -> str:
        """Replace paths of the private folder in a text by those of the artefact's own files."""
        for name in sorted(self._files, key=len, reverse=True):
            text = text.replace(str(self.folder / name), str(self._files[name].path))
        text = text.replace(str(self.folder), str(self.artefact))
        folder = str(self.folder)
        for length in range(len(folder) - 1, SHORTEST_REST, -1):
            if text.endswith(folder[:length]):
                return text[:-length] + str(self.artefact)
        return text

    @contextlib.contextmanager
    def naming_artefact(self) -> Iterator[None]:
        """Let errors of the block name the artefact's files, not those of the private folder."""
        try:
            yield
        except CgconvertError as error:
            self.check_unchanged()  # if one has changed, that is the error to show
            error.args = (self.with_artefact_paths(str(error)), *error.args[1:])
            raise

    def close(self) -> None:
        """Remove the private folder; closing twice does no harm."""
        self._remove()

    def _place(self, name: str) -> Path:
        """The path of a file in the private folder; folders on the way are made."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class UnchangedFiles:
    """Files that must not change while the parts of a command read them one after the other."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._identities = {path: file_identity(path) for path in paths}

    def check(self) -> None:
        """Raise InputError if a file is not what it was at first."""
        for path, identity in self._identities.items():
            named = got_second_name(identity.device, identity.inode)
            _check_unchanged(path, identity._replace(changed=0) if named else identity)


def _check_unchanged(path: Path, before: FileIdentity) -> None:
    """Raise InputError if the file at a path is another one, or has been changed."""
    try:
        now = file_identity(path)
    except OSError:
        now = None
    if now is not None and not before.changed:
        now = now._replace(changed=0)
    if now != before:
        raise InputError(
            f"{path}: was changed or replaced while it was in use, so what was checked is not what "
            "is there now; run the command again"
        )


@contextlib.contextmanager
def admitting(artefact: Path, root: Path) -> Iterator[AdmittedFiles]:
    """Make the private folder of an artefact; it is removed if the block raises an exception.

    The block checks what lies in the private folder; its errors name the artefact's files.
    """
    files = AdmittedFiles(artefact, root)
    try:
        with files.naming_artefact():
            yield files
    except BaseException:
        files.close()
        raise


def _remove(folder: Path, files: dict[str, _AdmittedFile]) -> None:
    """Remove a private folder, and close what its links lead to."""
    shutil.rmtree(folder, ignore_errors=True)
    for admitted in files.values():
        if admitted.file is not None:
            admitted.file.close()
