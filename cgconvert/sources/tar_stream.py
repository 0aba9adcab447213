"""The regular files of a tar archive, one after the other, out of a stream.

Nothing but names and sizes is taken from the archive: no link is followed, nothing is seeked, no
header makes anyone read much. The tarfile module does as archives say in several of these
(CVE-2025-4517, CVE-2025-8194: its filters passed by, endless loops), fixed only in later releases
of the Pythons that cgconvert runs on. Format: POSIX pax (ustar and its extended headers), GNU's
long names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Reads", "TarError", "TarFile", "TarStream"]

BLOCK = 512
MAX_HEADER_BYTES = 16 << 10
"""Of a long name or an extended header."""
MAX_MEMBERS = 2000
SKIP_BYTES = 1 << 20

REGULAR = (b"0", b"\0", b"7")
WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes
LONG_NAME, LONG_LINK, EXTENDED, GLOBAL = b"L", b"K", b"x", b"g"
HEADERS = (LONG_NAME, LONG_LINK, EXTENDED, GLOBAL)


class TarError(ValueError):
    """Not an archive, a damaged one, or one with what no checkpoint needs."""


class Reads(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class TarFile:
    """A regular file: its path in the archive and its size in bytes."""

    name: str
    size: int


class TarStream:
    """Iterate over the files; `read` gives the data of the one last yielded, the rest is skipped.

    `budget` is how many bytes the archive may unpack to. Raises TarError.
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
                    said = _extended(data)
                    if kind == GLOBAL and said.keys() & {"path", "size"}:
                        raise TarError("one name or size for all its members")
                    name, size = said.get("path", name), _size(said.get("size"), size)
                continue
            found = TarFile(own_name if name is None else name, own_size if size is None else size)
            name = size = None
            self._begin(found, kind)
            if kind in REGULAR and not found.name.endswith("/"):
                yield found
        raise TarError(f"more than {MAX_MEMBERS} members")

    def read(self, size: int) -> bytes:
        """At most `size` bytes of the current file, b"" at its end."""
        data = self._exactly(min(size, self.left))
        self.left -= len(data)
        return data

    def _begin(self, found: TarFile, kind: bytes) -> None:
        if kind == b"S":
            raise TarError(f"{found.name!r} is sparse")
        if kind in WITHOUT_DATA:
            if found.size:
                raise TarError(f"{found.name!r} is no file and has data")
            return
        self.budget -= found.size
        if self.budget < 0:
            raise TarError(f"{found.name!r} has {found.size} bytes, far more than the archive")
        self.left, self.padding = found.size, -found.size % BLOCK

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
    told = _number(header[148:156])
    if told != sum(header[:148]) + sum(header[156:]) + 8 * ord(" "):
        raise TarError("a header whose checksum is wrong")
    name = header[:100].split(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345] != 0:
        name = header[345:500].split(b"\0")[0] + b"/" + name
    return header[156:157], name.decode(errors="surrogateescape"), _number(header[124:136])


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # GNU's, for what does not fit into octal digits
        return int.from_bytes(field[1:])
    digits = field.strip(b" \0")
    if not set(digits) <= set(b"01234567"):
        raise TarError("a header with a number that is none")
    return int(digits or b"0", 8)


def _extended(data: bytes) -> dict[str, str]:
    """Records `length key=value\\n`."""
    found: dict[str, str] = {}
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
        found[name] = value[:-1].decode(errors="surrogateescape")
    return found


def _size(text: str | None, otherwise: int | None) -> int | None:
    if text is None:
        return otherwise
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise TarError(f"a size of {text[:40]!r} bytes")
    return int(text)
