"""Broken and hostile release tarballs: links, sizes that lie, bombs, names that point outside."""

from __future__ import annotations

import gzip
from pathlib import Path

from tests.faults.cases_zip import change_bytes
from tests.faults.matrix import Case, Damage

__all__ = ["TARS"]


def tar_header(name: bytes, size: int, kind: bytes = b"0", link: bytes = b"") -> bytes:
    number = b"%011o\0" % size if 0 <= size < 1 << 33 else b"\x80" + size.to_bytes(11, signed=True)
    raw = name.ljust(100, b"\0") + b"0000644\0" * 3 + number + b"0" * 12 + b" " * 8 + kind
    raw = (raw + link.ljust(100, b"\0") + b"ustar\x0000").ljust(512, b"\0")
    return raw[:148] + b"%06o\0 " % sum(raw) + raw[156:]


def tar_member(name: bytes, data: bytes, kind: bytes = b"0") -> bytes:
    return tar_header(name, len(data), kind) + data + bytes(-len(data) % 512)


def tar(*parts: bytes, finish: bytes = bytes(1024)) -> Damage:
    return lambda path: path.write_bytes(gzip.compress(b"".join(parts) + finish, 1))


def bomb(before: bytes, zeros: int, after: bytes = bytes(1024)) -> Damage:
    """A decompression bomb: `zeros` bytes of zeros, compressed a thousand times."""

    def damage(path: Path) -> None:
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(before)
            for _ in range(zeros >> 20):
                file.write(bytes(1 << 20))
            file.write(after)

    return damage


CONFIG = tar_member(b"codegen/config.json", b"{}")
PAX = b"x"


def pax_record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    size = len(body) + 1
    while len(b"%d" % size) + len(body) != size:
        size += 1
    return b"%d" % size + body


def tar_case(damage: Damage, message: str) -> Case:
    return Case("tarball", damage, message, "source.tar.gz")


TARS: dict[str, Case] = {
    "tar: empty file": tar_case(lambda p: p.write_bytes(b""), "not a readable|truncated"),
    "tar: not gzip": tar_case(lambda p: p.write_bytes(b"\0" * 4096), "not a readable"),
    "tar: gzip cut short": tar_case(lambda p: p.write_bytes(p.read_bytes()[:90_000]), "not a read"),
    "tar: gzip's CRC": tar_case(
        change_bytes(".", lambda d: d.__setitem__(-6, d[-6] ^ 1)), "not a readable"
    ),
    "tar: parent folder": tar_case(
        tar(tar_member(b"../../config.json", b"{}")), "refused: .* points outside"
    ),
    "tar: absolute": tar_case(tar(tar_member(b"/tmp/config.json", b"{}")), "points outside"),
    "tar: a link for the configuration": tar_case(
        tar(tar_header(b"codegen/config.json", 0, b"2", b"/etc/passwd")), "no config.json"
    ),
    "tar: a chain of links": tar_case(
        tar(
            *(tar_header(b"a%d" % i, 0, b"2", b"../" * i) for i in range(99)),
            tar_header(b"codegen/config.json", 0, b"1", b"a98/etc/passwd"),
        ),
        "no config.json",
    ),
    "tar: a device": tar_case(tar(tar_header(b"config.json", 0, b"3")), "no config.json"),
    "tar: a pipe": tar_case(tar(tar_header(b"config.json", 0, b"6")), "no config.json"),
    "tar: a folder for the configuration": tar_case(
        tar(tar_header(b"codegen/config.json/", 0, b"0")), "no config.json"
    ),
    "tar: a link with data": tar_case(
        tar(tar_header(b"x", 512, b"1"), bytes(512)), "is not a regular file but has data"
    ),
    "tar: a member twice": tar_case(tar(CONFIG, CONFIG), "holds config.json twice"),
    "tar: a gzip bomb": tar_case(
        bomb(CONFIG + tar_header(b"codegen/pytorch_model.bin", 4 << 30), 128 << 20),
        "far more data than an archive of this size",
    ),
    "tar: a bomb that nobody wants": tar_case(
        bomb(CONFIG + tar_header(b"codegen/training.log", 900 << 30), 16 << 20),
        "far more data than an archive of this size",
    ),
    "tar: a bomb behind the end": tar_case(bomb(CONFIG + bytes(1024), 64 << 20), "data follows"),
    "tar: a name of 8 GB": tar_case(
        tar(tar_header(b"././@LongLink", 8 << 30, b"L")), "a header of"
    ),
    "tar: an extended header of 8 GB": tar_case(tar(tar_header(b"x", 8 << 30, PAX)), "a header of"),
    "tar: a negative size": tar_case(tar(tar_header(b"x", -1024)), "number|far more"),
    "tar: a negative size in an extended header": tar_case(
        tar(tar_member(b"x", pax_record(b"size", b"-1024"), PAX), CONFIG), "a size of"
    ),
    "tar: a size for all": tar_case(
        tar(tar_member(b"x", pax_record(b"size", b"0"), b"g"), CONFIG), "for all its members"
    ),
    "tar: an outside name in an extended header": tar_case(
        tar(tar_member(b"x", pax_record(b"path", b"../../config.json"), PAX), CONFIG),
        "points outside",
    ),
    "tar: a sparse file": tar_case(tar(tar_header(b"config.json", 1 << 40, b"S")), "sparse"),
    "tar: a sparse file of the other kind": tar_case(
        tar(tar_member(b"x", pax_record(b"GNU.sparse.realsize", b"1"), PAX), CONFIG), "sparse"
    ),
    "tar: a checksum": tar_case(tar(CONFIG[:100] + b"1" + CONFIG[101:]), "checksum"),
    "tar: without its end": tar_case(tar(CONFIG, finish=b""), "truncated"),
    "tar: ends inside a member": tar_case(tar(CONFIG[:700], finish=b""), "truncated"),
    "tar: too many members": tar_case(tar(*[tar_header(b"x", 0)] * 3000), "more than"),
    "tar: no checkpoint": tar_case(tar(tar_member(b"readme", b"hello")), "no config.json"),
}
