"""Read the regular files of a tar archive, one after the other, from a stream.

Only names and sizes are taken from the archive: no link is followed, and the size of every header
is bounded. Python's tarfile in stream mode ("r|", measured with 3.11.7, which cgconvert supports)
is not safe enough for archives from untrusted sources:

- It reads an extended header or a long name whole. One of 1 GB, which gzip compresses to 1 MB,
  takes 2 GB of memory and a minute (backtracking while it is parsed is CVE-2024-6232).
- It skips a member by its declared size, even beyond the end of the stream: with a size of 2**88
  bytes it never ends. Nor does it with negative sizes in seekable files (CVE-2025-8194).
- If an archive ends without its end mark, or a header after the first member is damaged, it stops
  there without an error.
- It applies a size or path in a global header to every member, and it reads maps of sparse files.

Format: POSIX pax (ustar and its extended headers) and GNU's long names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

__all__ = ["ByteReader", "TarError", "TarMember", "TarStream"]

BLOCK_BYTES = 512
"""Headers are one block; data is padded with zeros to whole blocks."""

MAX_HEADER_BYTES = 16 << 10
"""Most bytes of a long name or an extended header; real paths are far shorter."""

MAX_MEMBERS = 2000
"""Most headers that are read."""

SKIP_BYTES = 1 << 20
"""Bytes read at once while data is skipped."""

END_MARK = bytes(BLOCK_BYTES)

# Values of a header's type flag.
REGULAR_FILES = (b"0", b"\0", b"7")
WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes
SPARSE_FILE = b"S"
LONG_NAME, LONG_LINK, EXTENDED_HEADER, GLOBAL_HEADER = b"L", b"K", b"x", b"g"
HEADERS_OF_NEXT_MEMBER = (LONG_NAME, LONG_LINK, EXTENDED_HEADER, GLOBAL_HEADER)


class TarError(ValueError):
    """The stream is not a tar archive, is damaged, or uses a feature that no checkpoint needs."""


class ByteReader(Protocol):
    """Anything to read bytes from, such as a file."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class TarMember:
    """A member of an archive: its path in the archive and the size of its data in bytes."""

    name: str
    size: int


class TarStream:
    """Iterates over the regular files of an archive.

    `read` returns the data of the file that was yielded last. Data that is not read is skipped.

    Args:
        file: The archive, decompressed.
        max_bytes: Most bytes of data that all members together may have.

    Raises:
        TarError: While iterating or reading.
    """

    def __init__(self, file: ByteReader, max_bytes: int) -> None:
        self.file, self.allowed_bytes = file, max_bytes
        self.unread_bytes = self.padding_bytes = 0
        """Bytes of the current member's data that are not read yet, and of the zeros behind it."""

    def __iter__(self) -> Iterator[TarMember]:
        # Headers of their own may give the next member another name and size.
        next_name: str | None = None
        next_size: int | None = None
        for _ in range(MAX_MEMBERS):
            self._skip(self.unread_bytes + self.padding_bytes)
            self.unread_bytes = self.padding_bytes = 0
            header = self._read_exactly(BLOCK_BYTES)
            if header == END_MARK:
                return
            type_flag, name, size = _parse_header(header)
            if type_flag in HEADERS_OF_NEXT_MEMBER:
                data = self._read_header_data(size)
                if type_flag == LONG_NAME:
                    next_name = data.split(b"\0")[0].decode(errors="surrogateescape")
                elif type_flag != LONG_LINK:
                    records = _parse_pax_records(data)
                    if type_flag == GLOBAL_HEADER and records.keys() & {"path", "size"}:
                        raise TarError("one name or size for all its members")
                    next_name = records.get("path", next_name)
                    if "size" in records:
                        next_size = _parse_pax_size(records["size"])
                continue
            member = TarMember(
                name if next_name is None else next_name, size if next_size is None else next_size
            )
            next_name = next_size = None
            self._begin_member(member, type_flag)
            # Archives older than POSIX mark a folder by a slash at the end of its name only.
            if type_flag in REGULAR_FILES and not member.name.endswith("/"):
                yield member
        raise TarError(f"more than {MAX_MEMBERS} members")

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes of the current file's data, b"" at its end."""
        data = self._read_exactly(min(size, self.unread_bytes))
        self.unread_bytes -= len(data)
        return data

    def _begin_member(self, member: TarMember, type_flag: bytes) -> None:
        """Check a member whose header was read, and set how many bytes follow the header."""
        if type_flag == SPARSE_FILE:
            raise TarError(f"{member.name!r} is sparse")
        if type_flag in WITHOUT_DATA:
            if member.size:
                raise TarError(f"{member.name!r} is not a regular file but has data")
            return
        if member.size > self.allowed_bytes:
            raise TarError(
                f"{member.name!r} has {member.size} bytes: the members have far more data than "
                "an archive of this size can hold"
            )
        self.allowed_bytes -= member.size
        self.unread_bytes, self.padding_bytes = member.size, _padding(member.size)

    def _read_header_data(self, size: int) -> bytes:
        """Read the data of a header that describes the next member."""
        if size > MAX_HEADER_BYTES:
            raise TarError(f"a header of {size} bytes")
        return self._read_exactly(size + _padding(size))[:size]

    def _skip(self, count: int) -> None:
        """Read `count` bytes and forget them."""
        while count:
            count -= len(self._read_exactly(min(count, SKIP_BYTES)))

    def _read_exactly(self, count: int) -> bytes:
        """Read `count` bytes, which may take several reads."""
        data = self.file.read(count)
        while len(data) < count:
            more = self.file.read(count - len(data))
            if not more:
                raise TarError("it ends too early: truncated")
            data += more
        return data


def _padding(size: int) -> int:
    """Bytes that fill the last block of `size` bytes of data."""
    return -size % BLOCK_BYTES


def _parse_header(header: bytes) -> tuple[bytes, str, int]:
    """Return the type flag, name and size in bytes of a member from its header block."""
    checksum = _parse_number(header[148:156])
    # The sum of all bytes, with the checksum's own eight counted as spaces.
    if checksum != sum(header[:148]) + sum(header[156:]) + 8 * ord(" "):
        raise TarError("a header whose checksum is wrong")
    name = header[:100].split(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345] != 0:
        name = header[345:500].split(b"\0")[0] + b"/" + name
    size = _parse_number(header[124:136])
    return header[156:157], name.decode(errors="surrogateescape"), size


def _parse_number(field: bytes) -> int:
    """Parse a numeric field of a header: octal digits, or GNU's binary form of large numbers."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    digits = field.strip(b" \0")
    if not set(digits) <= set(b"01234567"):
        raise TarError("a header with an invalid number")
    return int(digits or b"0", 8)


def _parse_pax_records(data: bytes) -> dict[str, str]:
    """Parse the records of an extended header, each `length key=value\\n`."""
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


def _parse_pax_size(text: str) -> int:
    """Parse the size in bytes from an extended header, which is a decimal number."""
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise TarError(f"a size of {text[:40]!r} bytes")
    return int(text)
