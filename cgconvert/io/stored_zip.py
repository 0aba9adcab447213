"""Find the members of a zip archive that stores them uncompressed, as torch and numpy write it.

The archive is read strictly, so that no two readers can see different data in one file: one
directory that ends where the file ends, every name once, nothing compressed or encrypted, no two
members that overlap. Python's zipfile reads overlapping members before 3.11.8 (CVE-2024-0450), and
archives with other data before them in any version.
Format: PKWARE's APPNOTE 4.3 and 4.5.3 (zip64).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cgconvert.errors import InputError

__all__ = ["Member", "members"]

MAX_DIRECTORY_BYTES = 16 << 20
"""Size of the directory of a shard with 100,000 tensors."""

DESCRIPTOR, UTF8 = 1 << 3, 1 << 11
"""Flags that torch sets: sizes are repeated behind the data, names are UTF-8."""

ABSENT16, ABSENT32 = 0xFFFF, 0xFFFFFFFF
"""Values of a field whose real value is in the zip64 part."""

_END = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")

_ABSENT = (ABSENT16, ABSENT16, ABSENT16, ABSENT16, ABSENT32, ABSENT32)
"""For each field of the directory's end: the value that refers to the zip64 part."""


@dataclass(frozen=True)
class Member:
    """A member: where its bytes are in the archive, and their CRC-32."""

    name: str
    offset: int
    size: int
    crc: int


def members(path: Path) -> dict[str, Member]:
    """Return every member by name. Raises InputError for any other kind of archive."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _Archive(path, file, size).members()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True)
class _Entry:
    name: bytes
    flags: int
    crc: int
    size: int
    header: int


class _Archive:
    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size

    def fault(self, text: str) -> InputError:
        return InputError(f"{self.path}: not a sound zip archive: {text}; fetch it again")

    def refused(self, name: bytes, text: str) -> InputError:
        return InputError(f"{self.path}: refused: member {name.decode(errors='replace')!r} {text}")

    def read(self, offset: int, count: int) -> bytes:
        if offset < 0 or offset + count > self.size:
            raise self.fault("it ends too early, or its directory lies")
        self.file.seek(offset)
        data = self.file.read(count)
        if len(data) != count:
            raise self.fault("it became shorter while it was read")
        return data

    def members(self) -> dict[str, Member]:
        count, start, length = self.directory()
        entries = self.entries(count, self.read(start, length))
        by_name: dict[str, Member] = {}
        end = 0
        for entry in sorted(entries, key=lambda e: e.header):
            if entry.header < end:
                raise self.refused(entry.name, "lies over another")
            offset = self.data_offset(entry)
            end = offset + entry.size
            if end > start:
                raise self.refused(entry.name, "reaches into the directory: truncated")
            try:
                name = entry.name.decode()
            except UnicodeDecodeError:
                raise self.refused(entry.name, "has a name that is not UTF-8") from None
            if name in by_name:
                raise self.refused(entry.name, "is there twice")
            by_name[name] = Member(name, offset, entry.size, entry.crc)
        return by_name

    def directory(self) -> tuple[int, int, int]:
        """Return number of entries, offset and length of the directory."""
        if self.size < _END.size:
            raise self.fault(f"it has {self.size} bytes")
        end = self.size - _END.size
        mark, *fields, comment = _END.unpack(self.read(end, _END.size))
        if mark != b"PK\5\6" or comment:
            raise self.fault("its end is missing or has something behind it: truncated")
        if end >= _LOCATOR.size + _END64.size:
            mark, disk, place, _ = _LOCATOR.unpack(self.read(end - _LOCATOR.size, _LOCATOR.size))
            if mark == b"PK\6\7":
                end -= _LOCATOR.size + _END64.size
                mark, rest, _, _, *wide_fields = _END64.unpack(self.read(end, _END64.size))
                values = zip(fields, wide_fields, _ABSENT, strict=True)
                lies = [n for n, wide, absent in values if n not in (wide, absent)]
                if mark != b"PK\6\6" or rest != _END64.size - 12 or place != end or lies or disk:
                    raise self.fault("the two ends of its directory do not say the same")
                fields = wide_fields
        disk, first, here, count, length, start = fields
        if disk or first or here != count:
            raise self.fault("it has several parts")
        if length > MAX_DIRECTORY_BYTES:
            raise self.fault(f"a directory of {length} bytes")
        if start + length != end:
            raise self.fault("its directory does not end where it says")
        return count, start, length

    def entries(self, count: int, raw: bytes) -> list[_Entry]:
        entries, position = [], 0
        while position < len(raw):
            if len(raw) - position < _ENTRY.size:
                raise self.fault("its directory is cut short")
            fields = _ENTRY.unpack_from(raw, position)
            mark, _, _, flags, method, _, _, crc, packed, size, *lengths, disk, _, _, header = (
                fields
            )
            names, extras, comments = lengths
            position += _ENTRY.size
            name = raw[position : position + names]
            extra = raw[position + names : position + names + extras]
            position += names + extras + comments
            if mark != b"PK\1\2" or position > len(raw):
                raise self.fault("its directory is damaged")
            size, packed, header = self.wide(name, extra, [size, packed, header])
            if method or flags & ~(DESCRIPTOR | UTF8):
                raise self.refused(name, "is compressed or encrypted; weights are stored plainly")
            if packed != size or disk:
                raise self.refused(name, f"has {packed} bytes and says {size}")
            entries.append(_Entry(name, flags, crc, size, header))
        if len(entries) != count:
            raise self.fault(f"its directory has {len(entries)} entries and says {count}")
        return entries

    def wide(self, name: bytes, extra: bytes, fields: list[int]) -> list[int]:
        """Return the fields, with values from the zip64 part of `extra` where they refer to it."""
        if ABSENT32 not in fields:
            return fields
        while len(extra) >= 4:
            kind, length = struct.unpack_from("<2H", extra)
            body, extra = extra[4 : 4 + length], extra[4 + length :]
            if kind == 1:
                absent = fields.count(ABSENT32)
                if len(body) < 8 * absent:
                    break
                values = iter(struct.unpack_from(f"<{absent}Q", body))
                return [next(values) if field == ABSENT32 else field for field in fields]
        raise self.refused(name, "has no sizes")

    def data_offset(self, entry: _Entry) -> int:
        """Return where a member's data begins, after comparing its header with the directory."""
        fields = _LOCAL.unpack(self.read(entry.header, _LOCAL.size))
        mark, _, flags, method, _, _, crc, packed, size, names, extras = fields
        name = self.read(entry.header + _LOCAL.size, names)
        later = entry.flags & DESCRIPTOR
        if (
            (mark, name, method, flags) != (b"PK\3\4", entry.name, 0, entry.flags)
            or (crc != entry.crc and not (later and crc == 0))
            or any(n not in (entry.size, ABSENT32) and not (later and n == 0)
                   for n in (packed, size))
        ):  # fmt: skip
            raise self.refused(entry.name, "is not what the directory says")
        start: int = entry.header + _LOCAL.size + names + extras
        return start
