"""SHA-256 of files: of the source while it is converted, of an artefact while it is written.

In an archive of weights the CRC-32 of every member is checked in the same pass over the source,
which torch and numpy do not do.
"""

from __future__ import annotations

import errno
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.io.stored_zip import Member, members
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.model.tensor import LazyTensor, Stored

__all__ = ["StreamingHash", "checked_sha256", "file_sha256", "source_digest"]

READ_BYTES = 4 << 20
"""Bytes of a source read at once."""

HASH_BYTES = 1 << 20
"""Bytes hashed at once: they stay in a core's cache between the page cache and the hash."""

STEP_BYTES = 8 << 20
"""Bytes handed to the hashing thread at once."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_digest(
    checkpoint: Checkpoint, cancelled: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Hash all files of a checkpoint.

    Args:
        checkpoint: The checkpoint.
        cancelled: Asked between reads; once it is true, the result is worth nothing.

    Returns:
        {files: [{name, bytes, sha256}], sha256}: an entry for each file, and one digest over names
        and hashes.

    Raises:
        InputError: A file cannot be read, or a member of an archive differs from its CRC.
    """
    entries = [
        {
            "name": path.name,
            "bytes": path.stat().st_size,
            "sha256": checked_sha256(path, _stored(checkpoint), cancelled),
        }
        for path in checkpoint.files
    ]
    combined = hashlib.sha256()
    for entry in sorted(entries, key=lambda e: str(e["name"])):
        combined.update(f"{entry['sha256']}  {entry['name']}\n".encode())
    return {"files": entries, "sha256": combined.hexdigest()}


def _stored(checkpoint: Checkpoint) -> Iterator[Stored]:
    """Every tensor of the files that a checkpoint's decoder is made of."""
    for part in (checkpoint.decoder, *checkpoint.decoder.layers):
        for value in vars(part).values():
            if isinstance(value, LazyTensor):
                yield from value.leaves()


def checked_sha256(
    path: Path, tensors: Iterable[Stored] = (), cancelled: Callable[[], bool] = lambda: False
) -> str:
    """Hex digest of a file, read once; "" when `cancelled`.

    Raises InputError for a file that cannot be read and for an archive with a damaged member. The
    message names the one of `tensors` that lies in it, or else the member.
    """
    try:
        archive = _ArchiveCheck(path, tensors) if _is_archive(path) else None
        digest, buffer, position = hashlib.sha256(), bytearray(READ_BYTES), 0
        with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as thread:
            while count := file.readinto(buffer):
                if cancelled():
                    return ""
                chunk = memoryview(buffer)[:count]
                check = thread.submit(archive.update, chunk, position) if archive else None
                digest.update(chunk)
                if check:
                    check.result()
                position += count
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if archive and archive.unread:
        raise InputError(f"{path}: became shorter while it was read")
    return digest.hexdigest()


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix in (".bin", ".npz") and file.read(4) == b"PK\3\4"


class _ArchiveCheck:
    """Compares the CRC of every member while the file's bytes pass by in order."""

    def __init__(self, path: Path, tensors: Iterable[Stored]) -> None:
        self.path, self.tensors = path, tensors
        ordered = sorted(members(path).values(), key=lambda member: member.offset)
        self.unread = [_MemberCheck(member) for member in ordered]

    def update(self, chunk: memoryview, position: int) -> None:
        """Take the file's bytes from `position` on. Raises InputError for a damaged member."""
        end = position + len(chunk)
        while self.unread and self.unread[0].starts_before(end):
            check = self.unread[0]
            check.update(chunk, position)
            if not check.ends_by(end):
                break
            if not check.intact:
                raise InputError(
                    f"{self.path}: {self._name(check.member)} is damaged: its CRC differs; "
                    "fetch the file again"
                )
            del self.unread[0]

    def _name(self, member: Member) -> str:
        """Name the tensor in a member; the member itself where it holds none or several."""
        data = range(member.offset, member.offset + member.size)
        names = {t.name for t in self.tensors if t.path == self.path and t.offset in data}
        return f"tensor {names.pop()}" if len(names) == 1 else member.name


class _MemberCheck:
    """The CRC of one member so far."""

    def __init__(self, member: Member) -> None:
        self.member, self.crc = member, 0

    def starts_before(self, position: int) -> bool:
        return self.member.offset < position or not self.member.size

    def ends_by(self, position: int) -> bool:
        return self.member.offset + self.member.size <= position

    def update(self, chunk: memoryview, position: int) -> None:
        first = max(0, self.member.offset - position)
        stop = max(0, self.member.offset + self.member.size - position)
        self.crc = zlib.crc32(chunk[first:stop], self.crc)

    @property
    def intact(self) -> bool:
        return self.crc == self.member.crc


class StreamingHash:
    """SHA-256 of a file that is still being written, computed on a thread close behind the writer.

    The bytes are read back from the file, where the kernel still has them in memory. So pieces may
    be written in any order, nothing is kept for the hash, and bytes that an interrupted run left
    are hashed as they are.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._digest, self._buffer = hashlib.sha256(), bytearray(HASH_BYTES)
        self._thread = ThreadPoolExecutor(1)
        self._steps: list[Future[None]] = []
        self._submitted = 0
        self._stopped = False

    def reached(self, position: int) -> None:
        """Allow hashing up to `position`: the bytes before it are written and stay as they are."""
        if position - self._submitted >= STEP_BYTES:
            self._submit(position)

    def hexdigest(self, size: int) -> str:
        """Wait for the digest of all `size` bytes, which are written by now."""
        self._submit(size)
        for step in self._steps:
            step.result()
        return self._digest.hexdigest()

    def close(self) -> None:
        """Stop hashing and close the file."""
        self._stopped = True
        self._thread.shutdown(cancel_futures=True)
        os.close(self._descriptor)

    def _submit(self, position: int) -> None:
        self._steps.append(self._thread.submit(self._hash, self._submitted, position))
        self._submitted = position

    def _hash(self, position: int, stop: int) -> None:
        view = memoryview(self._buffer)
        while position < stop and not self._stopped:
            count = os.preadv(self._descriptor, [view[: stop - position]], position)
            if not count:
                raise OSError(errno.EIO, "a file ended while it was written")
            self._digest.update(view[:count])
            position += count
