"""Decompression of gzip: as Python's own does, and bounded."""

from __future__ import annotations

import gzip
import io
import random
import struct
import time
import zlib
from collections.abc import Callable

import pytest

from cgconvert.sources import gzip_stream
from cgconvert.sources.gzip_stream import GzipStream
from cgconvert.sources.tar_stream import TarError

DATA = random.Random(0).randbytes(200_000) + bytes(300_000)
EMPTY = gzip.compress(b"")


def member_with(flags: int, extra: bytes, data: bytes = DATA) -> bytes:
    """A gzip member whose header has the fields in `extra`, which the flags announce."""
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    raw = compressor.compress(data) + compressor.flush()
    header = struct.pack("<2sBBIBB", b"\x1f\x8b", 8, flags, 0, 0, 255) + extra
    return header + raw + struct.pack("<2I", zlib.crc32(data), len(data) & 0xFFFFFFFF)


def read_all(raw: bytes, size: int = 4 << 20) -> bytes:
    stream = GzipStream(io.BytesIO(raw))
    return b"".join(iter(lambda: stream.read(size), b""))


VALID = {
    "one member": gzip.compress(DATA),
    "stored": gzip.compress(DATA, 0),
    "several members": b"".join(
        gzip.compress(DATA[i : i + 65536]) for i in range(0, 500_000, 65536)
    )
    + EMPTY,
    "a name": member_with(8, b"checkpoint.tar\0"),
    "a field, a name and a comment": member_with(4 | 8 | 16, b"\x03\0abcname\0comment\0"),
    "padding": gzip.compress(DATA) + bytes(5000),
    "nothing": EMPTY,
}


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize("size", [7919, 4 << 20])
def test_data_is_that_of_pythons_gzip(name: str, size: int) -> None:
    assert read_all(VALID[name], size) == gzip.decompress(VALID[name])


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "no gzip": (lambda: b"PK" + bytes(100), "not gzip"),
    "cut short": (lambda: VALID["one member"][:-9], "truncated"),
    "cut in the header": (lambda: VALID["one member"][:5], "truncated"),
    "another CRC": (lambda: VALID["one member"][:-8] + b"\0" * 8, "damaged"),
    "rubbish behind it": (lambda: VALID["one member"] + b"rubbish", "not gzip"),
    "a name of 20 MB": (lambda: member_with(8, b"x" * 20_000_000 + b"\0"), "a header"),
    "a comment of 20 MB": (lambda: member_with(16, b"x" * 20_000_000 + b"\0"), "a header"),
    "100 MB of padding": (lambda: VALID["one member"] + bytes(100_000_000), "padding"),
    "5 million empty members": (lambda: EMPTY * 5_000_000, "1001 compressed parts"),
    "members of one byte": (lambda: gzip.compress(b"x") * 1_000_000, "1001 compressed parts"),
    "fields in every member": (
        lambda: member_with(4, b"\xff\xff" + bytes(65535), b"") * 900,
        "a header",
    ),
    "blocks without data": (
        lambda: (
            struct.pack("<2sBBIBB", b"\x1f\x8b", 8, 0, 0, 0, 255) + b"\0\0\0\xff\xff" * 20_000_000
        ),
        "a header or padding",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_costs_more_than_its_data_is_refused(name: str) -> None:
    make, message = BROKEN[name]
    raw = make()
    began = time.process_time()
    with pytest.raises(TarError, match=message):
        read_all(raw)
    assert time.process_time() - began < 2


def test_no_bytes_are_read_where_none_are_asked_for() -> None:
    stream = GzipStream(io.BytesIO(VALID["one member"]))
    assert stream.read(0) == b""
    assert stream.read(7) == DATA[:7]


def test_many_small_members_with_data_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gzip_stream, "MEMBERS", 2)
    raw = b"".join(gzip.compress(DATA[i : i + 4096]) for i in range(0, 100_000, 4096))
    assert read_all(raw) == DATA[:102_400]
