"""Decompress gzip from a stream, with bounds on what it may contain beside data.

Python's gzip reads the name in a header byte by byte, however long it is, and each member in
Python: a name of 100 MB or millions of empty members take minutes. zlib parses headers itself, and
checks the CRC-32 and the length of each member.

Format: RFC 1952. A file may have several members, whose data follow each other: bgzip writes one
for every 64 KiB.
"""

from __future__ import annotations

import zlib

from cgconvert.sources.tar_stream import ByteReader, TarError

__all__ = ["GzipStream"]

READ_BYTES = 64 << 10
"""Compressed bytes read at once."""

GZIP_FORMAT = 16 + zlib.MAX_WBITS
"""The argument that makes zlib expect a gzip header (zlib.h: inflateInit2)."""

MAX_BYTES_WITHOUT_DATA = 1 << 20
"""Most compressed bytes in a row that give no data: headers, empty blocks and padding."""

MEMBERS, MEMBER_BYTES = 1000, 4096
"""Any file may have so many members, and one more for every so many bytes of data."""


class GzipStream:
    """Reads the data of all members, one after the other.

    Args:
        file: The compressed file.
    """

    def __init__(self, file: ByteReader) -> None:
        self._file = file
        self._input = b""
        self._member = zlib.decompressobj(GZIP_FORMAT)
        self._is_inside = False
        self._member_count = self._data_bytes = self._bytes_without_data = 0

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes of data, at least one; b"" at the end.

        Raises TarError if the file is damaged, truncated, or has far more parts than data.
        """
        while size:  # which zlib would take for any number if it were 0
            if not self._input:
                self._input = self._file.read(READ_BYTES)
                if not self._input and self._is_inside:
                    raise TarError("it ends too early: truncated")
                if not self._input:
                    return b""
            if not self._is_inside and not self._begin_member():
                continue
            if data := self._decompress(size):
                return data
        return b""

    def _begin_member(self) -> bool:
        """Begin the next member; returns whether there is one in the bytes that were read."""
        if self._member_count:  # zeros may fill the last block of a tape
            size = len(self._input)
            self._input = self._input.lstrip(b"\0")
            self._count_without_data(size - len(self._input))
        if not self._input:
            return False
        self._member_count += 1
        if self._member_count > MEMBERS + self._data_bytes // MEMBER_BYTES:
            raise TarError(f"{self._member_count} compressed parts with hardly any data")
        self._member = zlib.decompressobj(GZIP_FORMAT)
        self._is_inside = True
        return True

    def _decompress(self, size: int) -> bytes:
        """Decompress the bytes that were read, into at most `size` bytes of data."""
        size_before = len(self._input)
        try:
            data = self._member.decompress(self._input, size)
        except zlib.error as error:
            raise TarError(f"not gzip, or damaged ({error})") from error
        if self._member.eof:
            self._input, self._is_inside = self._member.unused_data, False
        else:
            self._input = self._member.unconsumed_tail
        if data:
            self._data_bytes += len(data)
            self._bytes_without_data = 0
        else:
            self._count_without_data(size_before - len(self._input))
        return data

    def _count_without_data(self, count: int) -> None:
        """Count compressed bytes that gave no data. Raises TarError for too many in a row."""
        self._bytes_without_data += count
        if self._bytes_without_data > MAX_BYTES_WITHOUT_DATA:
            raise TarError("a header or padding without end")
