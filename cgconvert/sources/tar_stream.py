"""Read the regular files of a tar archive, one after the other, from a stream.

Only names and sizes are taken from the archive: no link is followed and every header is bounded.
Python's tarfile in stream mode ("r|", measured with 3.11.7, which cgconvert supports) gives less:

- It reads an extended header or a long name whole: one of 1 GB, which gzip packs into 1 MB, takes
  2 GB of memory and a minute (backtracking while it is parsed is CVE-2024-6232).
- It skips a member by its declared size even behind the end of the stream: a size of 2**88 bytes
  loops forever, as negative sizes do in files that can be seeked (CVE-2025-8194).
- An archive that ends without its end mark, or has a damaged header behind the first member, ends
  there without an error.
- A size or path in a global header applies to every member, and maps of sparse files are read.

Format: POSIX pax (ustar and its extended headers) and GNU's long names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Reads", "TarError", "TarFile", "TarStream"]

BLOCK = 512
MAX_HEADER_BYTES = 16 << 10
"""Bytes of a long name or an extended header at most; paths are far shorter."""
MAX_MEMBERS = 2000
SKIP_BYTES = 1 << 20

REGULAR = (b"0", b"\0", b"7")
WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes
LONG_NAME, LONG_LINK, EXTENDED, GLOBAL = b"L", b"K", b"x", b"g"
HEADERS = (LONG_NAME, LONG_LINK, EXTENDED, GLOBAL)


class TarError(ValueError):
    """The stream is no tar archive, is damaged, or uses a feature that no checkpoint needs."""


class Reads(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class TarFile:
    """A regular file: its path in the archive and its size in bytes."""

    name: str
    size: int


class TarStream:
    """Iterates over the regular files of an archive.

    `read` gives the data of the file that was yielded last; what is not read of it is skipped.

    Args:
        file: The archive, decompressed.
        budget: Bytes of data that all members may have together.

    Both raise TarError.
    """

    def __init__(self, file: Reads, budget: int) -> None:
        self.file, self.budget = file, budget
        self.left = self.padding = 0

    def __iter__(self) -> Iterator[TarFile]:
        name: str | None = None
        size: int | None = None
        for _ in range(MAX_MEMBERS):
            self._skip(self.left + self.padding)
            self.left = self.padding = 0
            header = self._exactly(BLOCK)
            if header == bytes(BLOCK):
                return
            kind, own_name, own_size = _parse(header)
            if kind in HEADERS:
                if own_size > MAX_HEADER_BYTES:
                    raise TarError(f"a header of {own_size} bytes")
                data = self._exactly(own_size + -own_size % BLOCK)[:own_size]
                if kind == LONG_NAME:
                    name = data.split(b"\0")[0].decode(errors="surrogateescape")
                elif kind != LONG_LINK:
                    records = _pax_records(data)
                    if kind == GLOBAL and records.keys() & {"path", "size"}:
                        raise TarError("one name or size for all its members")
                    name, size = records.get("path", name), _size(records.get("size"), size)
                continue
            member = TarFile(own_name if name is None else name, own_size if size is None else size)
            name = size = None
            self._begin(member, kind)
            if kind in REGULAR and not member.name.endswith("/"):
                yield member
        raise TarError(f"more than {MAX_MEMBERS} members")

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes of the current file, b"" at its end."""
        data = self._exactly(min(size, self.left))
        self.left -= len(data)
        return data

    def _begin(self, member: TarFile, kind: bytes) -> None:
        if kind == b"S":
            raise TarError(f"{member.name!r} is sparse")
        if kind in WITHOUT_DATA:
            if member.size:
                raise TarError(f"{member.name!r} is no file and has data")
            return
        self.budget -= member.size
        if self.budget < 0:
            raise TarError(f"{member.name!r} has {member.size} bytes, far more than the archive")
        self.left, self.padding = member.size, -member.size % BLOCK

    def _skip(self, count: int) -> None:
        while count:
            count -= len(self._exactly(min(count, SKIP_BYTES)))

    def _exactly(self, count: int) -> bytes:
        data = self.file.read(count)
        while len(data) < count:
            more = self.file.read(count - len(data))
            if not more:
                raise TarError("it ends too early: truncated")
            data += more
        return data


def _parse(header: bytes) -> tuple[bytes, str, int]:
    """Type, name and size of a member."""
    checksum = _number(header[148:156])
    if checksum != sum(header[:148]) + sum(header[156:]) + 8 * ord(" "):
        raise TarError("a header whose checksum is wrong")
    name = header[:100].split(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345] != 0:
        name = header[345:500].split(b"\0")[0] + b"/" + name
    return header[156:157], name.decode(errors="surrogateescape"), _number(header[124:136])


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # GNU: a binary number, where octal digits are too few
        return int.from_bytes(field[1:])
    digits = field.strip(b" \0")
    if not set(digits) <= set(b"01234567"):
        raise TarError("a header with a number that is none")
    return int(digits or b"0", 8)


def _pax_records(data: bytes) -> dict[str, str]:
    """Parse the records `length key=value\\n` of an extended header."""
    records: dict[str, str] = {}
    while data:
        digits, space, _ = data[:8].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record, data = data[:length], data[length:]
        key, equals, value = record[len(digits) + 1 :].partition(b"=")
        if not (space and equals and record.endswith(b"\n")):
            raise TarError("a damaged extended header")
        name = key.decode(errors="replace")
        if name.startswith("GNU.sparse"):
            raise TarError("a sparse file")
        records[name] = value[:-1].decode(errors="surrogateescape")
    return records


def _size(text: str | None, otherwise: int | None) -> int | None:
    if text is None:
        return otherwise
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise TarError(f"a size of {text[:40]!r} bytes")
    return int(text)
