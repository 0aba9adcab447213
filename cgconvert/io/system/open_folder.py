"""A folder in which others may write, opened once: it stays the same, whatever its path becomes.

Another user who can write in a folder can rename what lies in it and put links in its place between
two calls of the system. So the way to a folder is walked once, with a look at every link, and what
is in the folder is then reached through its descriptor. Linux gives a descriptor a path, in /proc,
that every function can use, also in forked processes. Other systems have none; there the paths
themselves are used.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from cgconvert.errors import UsageError
from cgconvert.io.system.owners import MOST_LINKS, is_roots_or_users, others_can_write

__all__ = ["MadeFolder", "OpenFolder", "is_in_open_folder"]


class OpenFolder:
    """A folder that is open; only this user can enter it if `private` made it.

    Attributes:
        path: The path by which everything in the folder is reached as long as it is open.
    """

    def __init__(self, path: Path, descriptor: int = -1) -> None:
        self.path, self._descriptor = path, descriptor
        if descriptor >= 0:
            self.path = _descriptor_path(descriptor) or path

    @classmethod
    def at(cls, path: Path, made: list[MadeFolder] | None = None) -> OpenFolder:
        """Open a folder by an absolute path.

        Args:
            path: The folder.
            made: Where the folders are added that are made because they are missing. If None, the
                folder has to be there.

        Raises UsageError if the path leads through a link which another user has put into a folder
        that others can write, and FileExistsError if a folder would be made where a link leads to.
        """
        if not hasattr(os, "O_PATH"):
            return cls._at_path(path, made)
        descriptor = os.open(path.anchor, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        names, links = list(reversed(path.parts[1:])), 0
        following = len(names)  # names of the path itself; those of links' targets are above them
        try:
            while names:
                name = names.pop()
                is_of_link, following = len(names) >= following, min(following, len(names))
                flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
                try:
                    entry = os.open(name, flags, dir_fd=descriptor)
                except FileNotFoundError:
                    if made is None:
                        raise
                    if is_of_link:
                        raise FileExistsError(
                            errno.EEXIST, "a link on the way leads nowhere", str(path)
                        ) from None
                    _make(cls(path, os.dup(descriptor)), name, made)
                    entry = os.open(name, flags, dir_fd=descriptor)
                status, folder = os.fstat(entry), os.fstat(descriptor)
                if not stat.S_ISLNK(status.st_mode):
                    os.close(descriptor)
                    descriptor = entry
                    continue
                target = Path(os.readlink("", dir_fd=entry))
                os.close(entry)
                links += 1
                if links > MOST_LINKS or not _is_trusted(status, folder, descriptor):
                    raise UsageError(
                        f"{path}: leads through the link {name}, which another user has put into a "
                        "folder that others can write; give the path without it"
                    )
                if target.is_absolute():
                    os.close(descriptor)
                    descriptor = os.open(target.anchor, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                names += reversed(target.parts[1:] if target.is_absolute() else target.parts)
            os.close(os.open(".", os.O_PATH | os.O_DIRECTORY, dir_fd=descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor)

    @classmethod
    def _at_path(cls, path: Path, made: list[MadeFolder] | None) -> OpenFolder:
        """Open a folder on a system whose folders are reached by their paths alone."""
        for folder in reversed((path, *path.parents)):
            if made is not None and not folder.exists():
                _make(cls(folder.parent), folder.name, made)
        return cls(path)

    @classmethod
    def nofollow(cls, path: Path) -> OpenFolder:
        """Open an existing folder; raises NotADirectoryError if it is a link or a file."""
        if not hasattr(os, "O_PATH"):
            if not stat.S_ISDIR(path.lstat().st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
            return cls(path)
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return cls(path, os.open(path, flags))

    def private(self, name: str) -> OpenFolder:
        """Open the folder `name` in this folder; make it, for this user alone, if it is missing.

        Raises NotADirectoryError if something else has this name, a link included.
        """
        with contextlib.suppress(FileExistsError):
            (self.path / name).mkdir(mode=0o700)
        return OpenFolder.nofollow(self.path / name)

    def close_to_others(self) -> None:
        """Let only this user read and write in this folder, which must be this user's."""
        self.path.chmod(0o700)

    def is_at(self, path: Path) -> bool:
        """Whether a path leads to this folder, by no link at its end."""
        try:
            return self._descriptor < 0 or os.path.samestat(
                os.fstat(self._descriptor), path.lstat()
            )
        except OSError:
            return False

    def close(self) -> None:
        """Close the folder; `path` leads nowhere then."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@dataclass(frozen=True)
class MadeFolder:
    """A folder that was made on the way to another.

    Attributes:
        parent: The open folder in which it was made.
        name: Its name in that.
    """

    parent: OpenFolder
    name: str

    def remove(self) -> None:
        """Remove it if it is empty, and close its parent."""
        with contextlib.suppress(OSError):
            (self.parent.path / self.name).rmdir()
        self.parent.close()


def _make(parent: OpenFolder, name: str, made: list[MadeFolder]) -> None:
    """Make a folder in an open one, unless another run is quicker."""
    try:
        (parent.path / name).mkdir()
    except FileExistsError:
        parent.close()
    except BaseException:
        parent.close()
        raise
    else:
        made.append(MadeFolder(parent, name))


def _is_trusted(link: os.stat_result, folder: os.stat_result, descriptor: int) -> bool:
    """Whether a link is one to follow: Linux's rule of protected_symlinks (proc_sys_fs(5)).

    It holds here without the sticky bit, and for folders of a group, too.
    """
    if is_roots_or_users(link) or link.st_uid == folder.st_uid:
        return True
    return not others_can_write(_descriptor_path(descriptor) or Path(os.curdir), folder)


def _descriptor_path(descriptor: int) -> Path | None:
    """The path of a descriptor of this process; None if /proc does not give it."""
    path = Path(f"/proc/{os.getpid()}/fd/{descriptor}")
    try:
        return path if os.path.samestat(path.stat(), os.fstat(descriptor)) else None
    except OSError:
        return None


def is_in_open_folder(path: str) -> bool:
    """Whether a path leads through the descriptor of a folder, as those of `OpenFolder` do."""
    return re.match(r"/proc/\d+/fd/\d+/", path) is not None
