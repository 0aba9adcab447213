"""Locks between processes: one file, which one run at a time may hold."""

from __future__ import annotations

import errno
import os
import stat
import warnings
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["FileLock"]


class FileLock:
    """An exclusive lock on a file, which is made where it is missing.

    The system frees the lock of a killed process. With fcntl, forked workers share the lock, so it
    is held as long as one of them can write. The library filelock serves where there is no fcntl:
    it locks with LockFileEx on Windows; its workers are not forked, and end with this process.

    Args:
        path: The file. It has no other purpose, and its folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        self._library_lock: Any = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor >= 0 or self._library_lock is not None

    def acquire(self, *, make: bool = True) -> None:
        """Lock the file, at once or not at all; with `make`, it is made if it is missing.

        Raises BlockingIOError if another process or object holds the lock, PermissionError if the
        file is not this user's alone, and OSError if it cannot be made, for example because its
        folder is missing.
        """
        if fcntl is None:
            self._acquire_by_library()
            return
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        flags |= os.O_CREAT if make else 0
        while True:
            descriptor = os.open(self.path, flags, 0o600)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                    raise PermissionError(errno.EPERM, "is not yours", str(self.path))
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Another run may have removed the file while this one opened it.
                if os.path.samestat(status, os.lstat(self.path)):
                    self._descriptor = descriptor
                    return
            except FileNotFoundError:
                pass  # it is made, or found missing, in the next round
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def release(self, *, remove: bool = False) -> None:
        """Unlock the file; `remove` removes it too, if no other run has it open by then."""
        if self._library_lock is not None:
            self._library_lock.release()  # removes it in any case
            self._library_lock = None
        elif self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            if remove:
                self.path.unlink(missing_ok=True)
            # Closing alone would not unlock it: workers that were forked share the lock and go on.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _acquire_by_library(self) -> None:
        # Imported where it is needed: it takes a tenth of a second.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is neither fcntl nor LockFileEx
            import filelock
        if not self.path.parent.is_dir():  # the library would make it
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
        lock = filelock.FileLock(self.path, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout as error:
            raise BlockingIOError(f"{self.path} is locked") from error
        self._library_lock = lock
