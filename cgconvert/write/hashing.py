"""SHA-256 of files: of the source during its conversion, and of the output while it is written.

If a source file is an archive of weights, the CRC-32 of every member is checked in the same pass;
torch and numpy do not check it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.io.reading import open_whole, read_head
from cgconvert.io.stored_zip import Member, read_members
from cgconvert.io.system.files import open_file, read_at
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.tensor import StoredTensor

__all__ = ["StreamingHash", "checked_sha256", "combined_sha256", "file_sha256", "hash_checkpoint"]

READ_BYTES = 4 << 20
"""Bytes of a source file read at once."""

HASH_BYTES = 1 << 20
"""Bytes of a written file read back and hashed at once; so many stay in a core's cache between the
two."""

STEP_BYTES = 8 << 20
"""Bytes of a written file that are handed to the hashing thread at once."""


def file_sha256(path: Path, advance: Callable[[int], None] = lambda count: None) -> str:
    """SHA-256 of a file, in hex; `advance` gets the number of bytes of each read."""
    hasher = hashlib.sha256()
    with open_whole(path) as file:
        while data := file.read(READ_BYTES):
            hasher.update(data)
            advance(len(data))
    return hasher.hexdigest()


def hash_checkpoint(
    checkpoint: Checkpoint,
    is_cancelled: Callable[[], bool] = lambda: False,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Hash all files of a checkpoint.

    Args:
        checkpoint: The checkpoint.
        is_cancelled: Called between reads. Once it returns true, hashing stops, and the result is
            incomplete and must not be used.
        advance: Gets the number of bytes of each read.

    Returns:
        {"files": [{"name", "bytes", "sha256"} for each file], "sha256": one hash over all names
        and hashes}.

    Raises:
        InputError: A file cannot be read, or a member of an archive differs from its CRC-32.
    """
    files = [
        {
            "name": path.name,
            "bytes": path.stat().st_size,
            "sha256": checked_sha256(path, checkpoint.decoder.leaves(), is_cancelled, advance),
        }
        for path in checkpoint.files
    ]
    return {"files": files, "sha256": combined_sha256(files)}


def combined_sha256(files: Iterable[Mapping[str, Any]]) -> str:
    """One SHA-256 (hex) over the names and hashes of files, sorted by name."""
    hasher = hashlib.sha256()
    for file in sorted(files, key=lambda file: str(file["name"])):
        hasher.update(f"{file['sha256']}  {file['name']}\n".encode(errors="surrogateescape"))
    return hasher.hexdigest()


def checked_sha256(
    path: Path,
    tensors: Iterable[StoredTensor] = (),
    is_cancelled: Callable[[], bool] = lambda: False,
    advance: Callable[[int], None] = lambda count: None,
) -> str:
    """SHA-256 of a file in hex, or "" if cancelled. The file is read once.

    If the file is an archive of weights, the CRC-32 of every member is checked too.

    Args:
        path: The file.
        tensors: Stored tensors, among them those in this file. An error names the tensor that lies
            in a damaged member, or the member itself if no tensor does.
        is_cancelled: Called between reads.
        advance: Gets the number of bytes of each read.

    Raises:
        InputError: The file cannot be read, or a member is damaged.
    """
    try:
        archive = _ArchiveCheck(path, tensors) if _is_archive(path) else None
        hasher, buffer, offset = hashlib.sha256(), bytearray(READ_BYTES), 0
        with open_whole(path) as file, ThreadPoolExecutor(1) as thread:
            while count := file.readinto(buffer):
                if is_cancelled():
                    return ""
                data = memoryview(buffer)[:count]
                # The two checksums of one read are computed at the same time.
                archive_update = thread.submit(archive.update, data, offset) if archive else None
                hasher.update(data)
                if archive_update:
                    archive_update.result()
                offset += count
                advance(count)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if archive and archive.incomplete:
        raise InputError(f"{path}: became shorter while it was read")
    return hasher.hexdigest()


def _is_archive(path: Path) -> bool:
    """Whether the name and the first bytes are those of torch's or numpy's zip archives."""
    return path.suffix in (".bin", ".npz") and read_head(path, 4) == b"PK\3\4"


class _ArchiveCheck:
    """Checks the CRC-32 of an archive's members, from all bytes of the file in order.

    `incomplete` has the members whose data has not been read to its end, in order of their offset.
    """

    def __init__(self, path: Path, tensors: Iterable[StoredTensor]) -> None:
        self.path, self.tensors = path, tensors
        members = sorted(read_members(path).values(), key=lambda member: member.offset)
        self.incomplete = [_MemberCheck(member) for member in members]

    def update(self, data: memoryview, offset: int) -> None:
        """Take the file's next bytes, which begin at `offset`.

        Raises InputError for a damaged member.
        """
        end = offset + len(data)
        while self.incomplete and self.incomplete[0].begins_before(end):
            check = self.incomplete[0]
            check.update(data, offset)
            if not check.ends_by(end):
                break
            if not check.is_intact:
                raise InputError(
                    f"{self.path}: {self._name(check.member)} is damaged: its CRC differs; "
                    "fetch the file again"
                )
            del self.incomplete[0]

    def _name(self, member: Member) -> str:
        """Name the one tensor stored in a member; name the member if it stores none or several."""
        extent = range(member.offset, member.offset + member.size)
        names = {t.name for t in self.tensors if t.path == self.path and t.offset in extent}
        return f"tensor {names.pop()}" if len(names) == 1 else member.name


class _MemberCheck:
    """The CRC-32 of the part of a member's data that has been read."""

    def __init__(self, member: Member) -> None:
        self.member, self.crc32 = member, 0

    def begins_before(self, offset: int) -> bool:
        """Whether the data begins before `offset` in the file; data of no bytes always does."""
        return self.member.offset < offset or not self.member.size

    def ends_by(self, offset: int) -> bool:
        """Whether the data ends at `offset` in the file or before."""
        return self.member.offset + self.member.size <= offset

    def update(self, data: memoryview, offset: int) -> None:
        """Add the part of `data` that belongs to the member; `data` begins at `offset`."""
        start = max(0, self.member.offset - offset)
        stop = max(0, self.member.offset + self.member.size - offset)
        self.crc32 = zlib.crc32(data[start:stop], self.crc32)

    @property
    def is_intact(self) -> bool:
        """Whether the CRC-32 of all data is that of the archive's directory."""
        return self.crc32 == self.member.crc32


class StreamingHash:
    """SHA-256 of a file that is still being written, computed on a thread close behind the writer.

    The thread reads the bytes back from the file while the kernel still has them in memory. So
    arrays may be written in any order, nothing is buffered for the hash, and the bytes that an
    interrupted run has left are hashed in the same way.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = open_file(path)
        self._hasher, self._buffer = hashlib.sha256(), bytearray(HASH_BYTES)
        self._thread = ThreadPoolExecutor(1)
        self._steps: list[Future[None]] = []
        self._submitted_bytes = 0
        self._is_stopped = False

    def allow(self, end: int) -> None:
        """Allow hashing of the first `end` bytes, which are written and will not change."""
        if end - self._submitted_bytes >= STEP_BYTES:
            self._submit(end)

    def hexdigest(self, size: int) -> str:
        """Wait until all `size` bytes, which must be written, are hashed. Returns the hash."""
        self._submit(size)
        for step in self._steps:
            step.result()
        return self._hasher.hexdigest()

    def close(self) -> None:
        """Stop hashing and close the file."""
        self._is_stopped = True
        self._thread.shutdown(cancel_futures=True)
        os.close(self._descriptor)

    def _submit(self, end: int) -> None:
        """Hand all bytes up to `end` that are not yet submitted to the hashing thread."""
        self._steps.append(self._thread.submit(self._hash, self._submitted_bytes, end))
        self._submitted_bytes = end

    def _hash(self, start: int, end: int) -> None:
        """Read and hash the bytes from `start` to `end`; runs on the thread."""
        view = memoryview(self._buffer)
        while start < end and not self._is_stopped:
            count = read_at(self._descriptor, view[: end - start], start)
            if not count:
                raise OSError(errno.EIO, "a file ended while it was written")
            self._hasher.update(view[:count])
            start += count
