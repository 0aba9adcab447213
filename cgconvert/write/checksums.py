"""What a source file holds, by its SHA-256, and whether an archive is what its own CRCs say."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cgconvert.errors import InputError
from cgconvert.formats.huggingface import torch_reader as torch_zip
from cgconvert.io.stored_zip import Member, members

__all__ = ["sha256"]

BLOCK = 4 << 20


def sha256(path: Path, cancelled: Callable[[], bool] = lambda: False) -> str:
    """Hex digest of a file, read once; "" where `cancelled` says to stop.

    Of an archive of weights the CRC-32 of each member is checked in the same pass and beside the
    hash, which torch and numpy do not do. Raises InputError naming the member, and its tensor,
    that is damaged.
    """
    try:
        return _sha256(path, cancelled)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _sha256(path: Path, cancelled: Callable[[], bool]) -> str:
    archive = _Archive(path) if _is_archive(path) else None
    digest, block, position = hashlib.sha256(), bytearray(BLOCK), 0
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as beside:
        while count := file.readinto(block):
            if cancelled():
                return ""
            part = memoryview(block)[:count]
            checked = beside.submit(archive.update, part, position) if archive else None
            digest.update(part)
            if checked:
                checked.result()
            position += count
    if archive and archive.unseen:
        raise InputError(f"{path}: became shorter while it was read")
    return digest.hexdigest()


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix in (".bin", ".npz") and file.read(4) == b"PK\3\4"


class _Archive:
    """The CRCs of all members, as blocks of the file go by."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unseen = [_Crc(m) for m in sorted(members(path).values(), key=lambda m: m.offset)]

    def update(self, block: memoryview, position: int) -> None:
        """Raises InputError naming the member that is damaged."""
        end = position + len(block)
        while self.unseen and self.unseen[0].starts_before(end):
            self.unseen[0].update(block, position)
            if not self.unseen[0].ends_by(end):
                break
            if not self.unseen[0].right:
                raise _damaged(self.path, self.unseen[0].member)
            del self.unseen[0]


class _Crc:
    """The CRC of one member, as blocks of the file go by."""

    def __init__(self, member: Member) -> None:
        self.member, self.value = member, 0

    def starts_before(self, position: int) -> bool:
        return self.member.offset < position or not self.member.size

    def ends_by(self, position: int) -> bool:
        return self.member.offset + self.member.size <= position

    def update(self, block: memoryview, position: int) -> None:
        first = max(0, self.member.offset - position)
        stop = max(0, self.member.offset + self.member.size - position)
        self.value = zlib.crc32(block[first:stop], self.value)

    @property
    def right(self) -> bool:
        return self.value == self.member.crc


def _damaged(path: Path, member: Member) -> InputError:
    what = member.name
    if path.suffix == ".bin":
        inside = range(member.offset, member.offset + member.size)
        tensors = [t.name for t in torch_zip.tensors(path).values() if t.offset in inside]
        what = f"tensor {tensors[0]}" if tensors else what
    return InputError(f"{path}: {what} is damaged: its CRC differs; fetch the file again")
