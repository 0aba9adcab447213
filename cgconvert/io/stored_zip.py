"""Read the directory of a zip archive whose members are stored uncompressed, as torch and numpy do.

The archive is read strictly, so that no two readers can see different data in one file: there is
one central directory, which ends where the end records begin; names are unique; no member is
compressed or encrypted; no two members overlap. Python's zipfile accepts overlapping members before
3.11.8 (CVE-2024-0450), and archives with other data before them in every version.

Format: PKWARE's APPNOTE, 4.3 (records) and 4.5.3 (ZIP64 fields). Names follow it: each member has a
local header before its data and an entry in the central directory, which end records follow.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cgconvert.errors import InputError
from cgconvert.io.reading import open_regular, spend, timed_reading
from cgconvert.io.stand_ins import check_head
from cgconvert.io.system.regular_files import size_of

__all__ = ["Member", "read_members"]

MAX_DIRECTORY_BYTES = 16 << 20
"""Size of the central directory of a shard with 100,000 tensors."""

HAS_DESCRIPTOR, UTF8_NAME = 1 << 3, 1 << 11
"""Flags that torch sets: CRC-32 and sizes are repeated in a data descriptor behind the data, and
the local header may have zeros for them; the name is UTF-8."""

IN_ZIP64_16, IN_ZIP64_32 = 0xFFFF, 0xFFFFFFFF
"""Values of a 16-bit and a 32-bit field whose real value is in a ZIP64 field."""

_END_RECORD = struct.Struct("<4s4H2IH")
_ZIP64_LOCATOR = struct.Struct("<4sIQI")
_ZIP64_END_RECORD = struct.Struct("<4sQ2H2I4Q")
_DIRECTORY_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")

_END_RECORD_IN_ZIP64 = (IN_ZIP64_16,) * 4 + (IN_ZIP64_32,) * 2
"""For each field of the end record, the value that refers to the ZIP64 end record."""

ZIP64_FIELD_ID = 1
"""Id of the ZIP64 field in the extra fields of a directory entry."""


@dataclass(frozen=True)
class Member:
    """A member: its name, where its data lies in the archive (in bytes), and its CRC-32."""

    name: str
    offset: int
    size: int
    crc32: int


def read_members(path: Path) -> dict[str, Member]:
    """Return the members of an archive by name.

    Raises InputError if the file cannot be read, or is any other kind of archive.
    """
    try:
        check_head(path)
        with open_regular(path) as file, timed_reading(path):
            return _Archive(path, file, size_of(file.fileno())).members()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True)
class _Entry:
    """An entry of the central directory; `header_offset` is where its local header begins."""

    name: bytes
    flags: int
    crc32: int
    size: int
    header_offset: int


class _Archive:
    """Reads the records of one archive of `size` bytes."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size

    def archive_error(self, fault: str) -> InputError:
        """Make the error for a fault of the archive as a whole."""
        return InputError(f"{self.path}: not a sound zip archive: {fault}; fetch it again")

    def member_error(self, name: bytes, fault: str) -> InputError:
        """Make the error for a fault of one member; `fault` continues a sentence about it."""
        return InputError(f"{self.path}: refused: member {name.decode(errors='replace')!r} {fault}")

    def read(self, offset: int, count: int) -> bytes:
        """Read exactly `count` bytes."""
        if offset < 0 or offset + count > self.size:
            raise self.archive_error("its directory points beyond its end: damaged or truncated")
        self.file.seek(offset)
        data = self.file.read(count)
        if len(data) != count:
            raise self.archive_error("it became shorter while it was read")
        return data

    def members(self) -> dict[str, Member]:
        """Read the central directory and all local headers, and check them."""
        count, directory_offset, directory_size = self.locate_directory()
        spend(self.path, "parts", count)
        spend(self.path, "bytes", directory_size)
        entries = self.parse_directory(count, self.read(directory_offset, directory_size))
        by_name: dict[str, Member] = {}
        end = 0
        for entry in sorted(entries, key=lambda e: e.header_offset):
            if entry.header_offset < end:
                raise self.member_error(entry.name, "overlaps another member")
            offset = self.data_offset(entry)
            end = offset + entry.size
            if end > directory_offset:
                raise self.member_error(entry.name, "reaches into the central directory")
            try:
                name = entry.name.decode()
            except UnicodeDecodeError:
                raise self.member_error(entry.name, "has a name that is not UTF-8") from None
            if name in by_name:
                raise self.member_error(entry.name, "occurs twice")
            by_name[name] = Member(name, offset, entry.size, entry.crc32)
        return by_name

    def locate_directory(self) -> tuple[int, int, int]:
        """Return the central directory's number of entries, offset and size in bytes.

        They are in the end record, or in the ZIP64 end record if there is one. No comment may
        follow the end record, because readers could take its text for another end record.
        """
        if self.size < _END_RECORD.size:
            raise self.archive_error(f"it has {self.size} bytes")
        end = self.size - _END_RECORD.size
        signature, *fields, comment_length = _END_RECORD.unpack(self.read(end, _END_RECORD.size))
        if signature != b"PK\5\6" or comment_length:
            raise self.archive_error(
                "it does not end with an end record: truncated, or something follows the record"
            )
        zip64_size = _ZIP64_LOCATOR.size + _ZIP64_END_RECORD.size
        if end >= zip64_size and self.read(end - _ZIP64_LOCATOR.size, 4) == b"PK\6\7":
            end -= zip64_size
            fields = self.zip64_end_fields(end, fields)
        disk, directory_disk, count_on_disk, count, size, offset = fields
        if disk or directory_disk or count_on_disk != count:
            raise self.archive_error("it is split into several parts")
        if size > MAX_DIRECTORY_BYTES:
            raise self.archive_error(f"its directory has {size} bytes")
        if offset + size != end:
            raise self.archive_error("its directory does not end where its end record begins")
        return count, offset, size

    def zip64_end_fields(self, offset: int, fields: list[int]) -> list[int]:
        """Read the fields of the ZIP64 end record at `offset`, which its locator follows.

        `fields` are those of the end record: each has the same value or refers to the ZIP64 one.
        """
        records = self.read(offset, _ZIP64_END_RECORD.size + _ZIP64_LOCATOR.size)
        signature, size, _, _, *zip64_fields = _ZIP64_END_RECORD.unpack_from(records)
        locator = _ZIP64_LOCATOR.unpack_from(records, _ZIP64_END_RECORD.size)
        _, locator_disk, locator_offset, _ = locator
        is_same = all(
            value in (zip64_value, in_zip64)
            for value, zip64_value, in_zip64 in zip(
                fields, zip64_fields, _END_RECORD_IN_ZIP64, strict=True
            )
        )
        if (
            not is_same
            or signature != b"PK\6\6"
            or size != _ZIP64_END_RECORD.size - 12  # without signature and size
            or (locator_disk, locator_offset) != (0, offset)
        ):
            raise self.archive_error("the two end records of its directory disagree")
        return zip64_fields

    def parse_directory(self, count: int, directory: bytes) -> list[_Entry]:
        """Parse the bytes of the central directory, which must have `count` entries."""
        entries, position = [], 0
        while position < len(directory):
            if len(directory) - position < _DIRECTORY_ENTRY.size:
                raise self.archive_error("its directory is cut short")
            (
                signature, _, _, flags, method, _, _, crc32, stored_size, size,
                name_length, extra_length, comment_length, disk, _, _, header_offset,
            ) = _DIRECTORY_ENTRY.unpack_from(directory, position)  # fmt: skip
            position += _DIRECTORY_ENTRY.size
            name = directory[position : position + name_length]
            position += name_length
            extra_fields = directory[position : position + extra_length]
            position += extra_length + comment_length
            if signature != b"PK\1\2" or position > len(directory):
                raise self.archive_error("its directory is damaged")
            size, stored_size, header_offset = self.resolve_zip64(
                name, extra_fields, [size, stored_size, header_offset]
            )
            if method or flags & ~(HAS_DESCRIPTOR | UTF8_NAME):
                raise self.member_error(
                    name, "is compressed or encrypted; members must be stored uncompressed"
                )
            if disk:
                raise self.member_error(name, "lies in another part of a split archive")
            if stored_size != size:
                raise self.member_error(name, f"has {stored_size} bytes but declares {size}")
            entries.append(_Entry(name, flags, crc32, size, header_offset))
        if len(entries) != count:
            raise self.archive_error(
                f"its directory has {len(entries)} entries but its end record declares {count}"
            )
        return entries

    def resolve_zip64(self, name: bytes, extra_fields: bytes, values: list[int]) -> list[int]:
        """Replace each of a directory entry's values that refers to the ZIP64 extra field.

        The ZIP64 field has a 64-bit number for each value that refers to it, in the order size,
        stored size, header offset.
        """
        if IN_ZIP64_32 not in values:
            return values
        while len(extra_fields) >= 4:
            field_id, length = struct.unpack_from("<2H", extra_fields)
            field, extra_fields = extra_fields[4 : 4 + length], extra_fields[4 + length :]
            if field_id == ZIP64_FIELD_ID:
                count = values.count(IN_ZIP64_32)
                if len(field) < 8 * count:
                    break
                numbers = iter(struct.unpack_from(f"<{count}Q", field))
                return [next(numbers) if value == IN_ZIP64_32 else value for value in values]
        raise self.member_error(name, "lacks the ZIP64 field that its sizes refer to")

    def data_offset(self, entry: _Entry) -> int:
        """Return where a member's data begins, behind its local header.

        The local header must agree with the central directory. Its sizes may refer to a ZIP64
        field; with a data descriptor, its CRC-32 and sizes may be zero.
        """
        header = _LOCAL_HEADER.unpack(self.read(entry.header_offset, _LOCAL_HEADER.size))
        signature, _, flags, method, _, _, crc32, stored_size, size, name_length, extra_length = (
            header
        )
        name = self.read(entry.header_offset + _LOCAL_HEADER.size, name_length)
        has_descriptor = bool(entry.flags & HAS_DESCRIPTOR)
        crcs = {entry.crc32, 0} if has_descriptor else {entry.crc32}
        sizes = {entry.size, IN_ZIP64_32, 0} if has_descriptor else {entry.size, IN_ZIP64_32}
        if (
            (signature, name, method, flags) != (b"PK\3\4", entry.name, 0, entry.flags)
            or crc32 not in crcs
            or not {stored_size, size} <= sizes
        ):
            raise self.member_error(
                entry.name, "has a local header that disagrees with the central directory"
            )
        offset: int = entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        return offset
