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
import stat
from pathlib import Path

from cgconvert.errors import UsageError

__all__ = ["OpenFolder", "is_open_to_others", "is_users"]

MAX_LINKS = 40
"""Links on the way to one folder; Linux follows so many as well (path_resolution(7))."""


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
    def at(cls, path: Path) -> OpenFolder:
        """Open an existing folder by an absolute path.

        Raises UsageError if the path leads through a link which another user has put into a folder
        that all users can write.
        """
        if not hasattr(os, "O_PATH"):
            return cls(path)
        descriptor = os.open(path.anchor, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        names, links = list(reversed(path.parts[1:])), 0
        try:
            while names:
                name = names.pop()
                entry = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
                status, folder = os.fstat(entry), os.fstat(descriptor)
                if not stat.S_ISLNK(status.st_mode):
                    os.close(descriptor)
                    descriptor = entry
                    continue
                target = Path(os.readlink("", dir_fd=entry))
                os.close(entry)
                links += 1
                if links > MAX_LINKS or not _is_trusted(status, folder):
                    raise UsageError(
                        f"{path}: leads through the link {name}, which another user has put into a "
                        "folder that all can write; give the path without it"
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


def is_users(status: os.stat_result) -> bool:
    """Whether a file or folder belongs to the user who runs this; Windows does not say."""
    return not hasattr(os, "geteuid") or status.st_uid == os.geteuid()


def is_open_to_others(status: os.stat_result) -> bool:
    """Whether the mode of a file or folder lets others than its owner write.

    Windows, and disks that come from it, keep no modes: they show this of every file.
    """
    return bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _is_trusted(link: os.stat_result, folder: os.stat_result) -> bool:
    """Whether a link is one to follow: Linux's rule of protected_symlinks (proc_sys_fs(5)).

    It holds here without the sticky bit too.
    """
    is_shared = bool(folder.st_mode & stat.S_IWOTH)
    return not is_shared or link.st_uid in (0, os.geteuid(), folder.st_uid)


def _descriptor_path(descriptor: int) -> Path | None:
    """The path of a descriptor of this process; None if /proc does not give it."""
    path = Path(f"/proc/{os.getpid()}/fd/{descriptor}")
    try:
        return path if os.path.samestat(path.stat(), os.fstat(descriptor)) else None
    except OSError:
        return None
