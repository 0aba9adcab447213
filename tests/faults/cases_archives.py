"""Archives that lie: torch's zip, numpy's npz, release tarballs."""

from __future__ import annotations

import gzip
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.faults.cases_pickle import FILE, rezipped
from tests.faults.matrix import CONVERTING, Case, Damage

__all__ = ["ARCHIVES"]

NPZ = Path("1000/model/0.npz")


def at(file: str | Path, change: Callable[[bytearray], object]) -> Damage:
    """Change the bytes of a file of the source."""

    def damage(source: Path) -> None:
        path = source / file if source.is_dir() else source
        data = bytearray(path.read_bytes())
        path.write_bytes(bytes(change(data) or data))  # type: ignore[call-overload]

    return damage


def members(change: Callable[[dict[str, bytes]], object], file: str | Path = FILE,
            **how: int) -> Damage:  # fmt: skip
    return lambda source: rezipped(source / file, change, **how)


def renamed(old: str, new: str) -> Damage:
    """Under another name, in every header."""
    return at(FILE, lambda data: data.replace(old.encode(), new.encode()))


def end(data: bytearray) -> int:
    """Where the end of the central directory is recorded."""
    return data.rindex(b"PK\5\6")


def put(data: bytearray, offset: int, kind: str, *values: int) -> None:
    struct.pack_into(kind, data, offset, *values)


def entry_of(data: bytearray, name: bytes) -> int:
    """Where the directory's entry of the first member ending so begins."""
    return data.rindex(b"PK\1\2", 0, data.rindex(name))


def twice(path: Path, name: str) -> None:
    """A second member of a name that is there."""
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr(name, b"\x80\x02}.")


def pickle_name(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        return next(n for n in archive.namelist() if n.endswith("/data.pkl"))


def flipped(name: bytes) -> Damage:
    """One bit of a member's data."""

    def change(data: bytearray) -> None:
        entry = entry_of(data, name)
        (header,) = struct.unpack_from("<I", data, entry + 42)
        names, extras = struct.unpack_from("<2H", data, header + 26)
        data[header + 30 + names + extras + 9] ^= 0x40

    return at(FILE, change)


def local(data: bytearray) -> None:
    """The header before a member calls it something else."""
    place = data.index(b"data/1")
    data[place : place + 6] = b"data/7"


def overlapping(data: bytearray) -> None:
    """Two members with one place."""
    first, second = entry_of(data, b"data/0"), entry_of(data, b"data/1")
    data[second + 42 : second + 46] = data[first + 42 : first + 46]


ZIPS: dict[str, Case] = {
    "zip: empty file": Case("torch", at(FILE, bytearray.clear), "the file is empty", FILE),
    "zip: git-lfs pointer": Case(
        "torch", at(FILE, lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "git-lfs pointer", FILE,
    ),
    "zip: HTML page": Case(
        "torch", at(FILE, lambda _: b"\n<!doctype html><html>"), "HTML page", FILE
    ),
    "zip: truncated": Case("torch", at(FILE, lambda d: d[: len(d) // 2]), "truncated", FILE),
    "zip: cut by a byte": Case("torch", at(FILE, lambda d: d[:-1]), "truncated", FILE),
    "zip: bytes behind": Case("torch", at(FILE, lambda d: d + b"x"), "something behind", FILE),
    "zip: bytes before": Case("torch", at(FILE, lambda d: b"PK\3\4" + bytes(96) + d), "directory",
                              FILE),
    "zip: a comment": Case(
        "torch", at(FILE, lambda d: put(d, end(d) + 20, "<H", 4) or d + b"PK\5\6"), "end", FILE
    ),
    "zip: two data.pkl": Case(
        "torch", lambda s: twice(s / FILE, "other/data.pkl"), "holds 2 data.pkl", FILE
    ),
    "zip: data.pkl twice": Case(
        "torch", lambda s: twice(s / FILE, pickle_name(s / FILE)), "is there twice", FILE
    ),
    "zip: DATA.PKL": Case(
        "torch", lambda s: twice(s / FILE, "archive/DATA.PKL"), "holds 2 data.pkl", FILE
    ),
    "zip: no data.pkl": Case("torch", renamed("data.pkl", "data.pkx"), "holds 0", FILE),
    "zip: deflated": Case(
        "torch", members(lambda m: None, compression=zipfile.ZIP_DEFLATED), "compressed", FILE
    ),
    "zip: a bomb of LZMA": Case(
        "torch", members(lambda m: m.update({"archive/data/0": bytes(30 << 20)}),
                         compression=zipfile.ZIP_LZMA), "compressed", FILE,
    ),
    "zip: encrypted": Case(
        "torch", at(FILE, lambda d: put(d, entry_of(d, b"data/0") + 8, "<H", 1)), "encrypted", FILE
    ),
    "zip: a method of compression in one header only": Case(
        "torch", at(FILE, lambda d: put(d, 8, "<H", 8)), "not what the directory says", FILE
    ),
    "zip: another name in the other header": Case(
        "torch", at(FILE, local), "not what the directory says", FILE
    ),
    "zip: members over one another": Case("torch", at(FILE, overlapping), "refused", FILE),
    "zip: a member beyond the end": Case(
        "torch", at(FILE, lambda d: put(d, entry_of(d, b"data/1") + 42, "<I", 0xF0000000)),
        "directory lies", FILE,
    ),
    "zip: sizes that lie": Case(
        "torch", at(FILE, lambda d: put(d, entry_of(d, b"data/1") + 20, "<2I", 1 << 30, 1 << 30)),
        "refused|directory", FILE,
    ),
    "zip: a directory of 4 GB": Case(
        "torch", at(FILE, lambda d: put(d, end(d) + 12, "<I", 0xFFFFFFF0)), "directory", FILE
    ),
    "zip: entries that are not there": Case(
        "torch", at(FILE, lambda d: put(d, end(d) + 8, "<2H", 999, 999)), "entries|ends", FILE
    ),
    "zip: several disks": Case(
        "torch", at(FILE, lambda d: put(d, end(d) + 4, "<H", 1)), "parts|ends", FILE
    ),
    "zip: zip64 says something else": Case(
        "torch", at(FILE, lambda d: d[:-22] + struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0,
                                                          1, 1, 46, 0)
                    + struct.pack("<4sIQI", b"PK\6\7", 0, len(d) - 22, 1) + d[-22:]),
        "ends do not say|directory", FILE,
    ),
    "zip: a flipped bit in the pickle": Case("torch", flipped(b"data.pkl"), "CRC", FILE),
    "zip: a flipped bit in a weight": Case(
        "torch", flipped(b"data/3"), r"tensor transformer\.\S+ is damaged: its CRC differs", FILE,
        (*CONVERTING, "reference"),
    ),
    "zip: a storage that is missing": Case(
        "torch", renamed("data/3", "data/x"), "the data of tensor .* is missing", FILE
    ),
    "zip: a name that is not UTF-8": Case(
        "torch", at(FILE, lambda d: d.replace(b"data/3", b"data/\xff")), "not UTF-8", FILE
    ),
    "zip: a shard that is none": Case(
        "torch-sharded", at("pytorch_model-00002-of-00002.bin", lambda d: d[:5000]), "truncated",
        "pytorch_model-00002-of-00002.bin",
    ),
    "zip: big-endian": Case(
        "torch", members(lambda m: m.update({n: b"big" for n in m if n.endswith("byteorder")})),
        "little-endian", FILE,
    ),
}  # fmt: skip


def leaf(number: int, change: Callable[[np.ndarray], object]) -> Damage:
    def damage(source: Path) -> None:
        arrays = dict(np.load(source / NPZ))
        arrays[f"arr_{number}"] = change(arrays[f"arr_{number}"])
        np.savez(source / NPZ, **arrays)  # type: ignore[arg-type]

    return damage


def header(text: str) -> Damage:
    """Another header of the first array."""

    def change(found: dict[str, bytes]) -> None:
        raw = text.encode().ljust(118 if len(text) < 118 else len(text) + 1)
        found["arr_0.npy"] = b"\x93NUMPY\1\0" + struct.pack("<H", len(raw)) + raw + bytes(256)

    return members(change, NPZ)


NPZS: dict[str, Case] = {
    "npz: truncated": Case("jaxformer", at(NPZ, lambda d: d[:-5000]), "truncated", "0.npz"),
    "npz: objects": Case(
        "jaxformer", leaf(7, lambda a: np.array([{}], dtype=object)), "expected float32", "0.npz"
    ),
    "npz: a bomb": Case(
        "jaxformer", lambda s: np.savez_compressed(s / NPZ, **{
            f"arr_{i}": np.zeros(1 << 20, np.float32) for i in range(14)}), "compressed", "0.npz",
    ),
    "npz: Fortran order": Case(
        "jaxformer", leaf(7, lambda a: np.asfortranarray(a)), "Fortran order", "0.npz"
    ),
    "npz: whole numbers": Case(
        "jaxformer", leaf(7, lambda a: a.astype(np.int64)), "expected float32", "0.npz"
    ),
    "npz: two fields of a byte": Case(
        "jaxformer", leaf(0, lambda a: np.zeros(64, "u1, u1")), "expected", "0.npz"
    ),
    "npz: another shape": Case("jaxformer", leaf(7, lambda a: a[:, 1:]), "arr_7.npy", "0.npz"),
    "npz: a leaf is missing": Case(
        "jaxformer", members(lambda m: m.pop("arr_3.npy"), NPZ), "holds 13 members", "0.npz"
    ),
    "npz: a leaf too many": Case(
        "jaxformer", members(lambda m: m.update({"../x.npy": b""}), NPZ), "15 members", "0.npz"
    ),
    "npz: a header that is a program": Case(
        "jaxformer", header("__import__('os').system('touch payload-was-run')"), "not an array",
        "0.npz",
    ),
    "npz: a header that lies": Case(
        "jaxformer", header("{'descr': '<f4', 'fortran_order': False, 'shape': (1073741824,)}"),
        "shorter or longer", "0.npz",
    ),
    "npz: a shape beyond counting": Case(
        "jaxformer", header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'9' * 40},)}}"),
        "impossible shape", "0.npz",
    ),
    "npz: brackets in brackets": Case("jaxformer", header("(" * 3000), "not an array", "0.npz"),
    "npz: a flipped bit": Case(
        "jaxformer", at(NPZ, lambda d: d.__setitem__(600_000, d[600_000] ^ 1)), "CRC differs",
        "0.npz", (*CONVERTING, "reference"),
    ),
}  # fmt: skip


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
    """`zeros` bytes of zeros in a thousandth of the space."""

    def damage(path: Path) -> None:
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(before)
            for _ in range(zeros >> 20):
                file.write(bytes(1 << 20))
            file.write(after)

    return damage


CONFIG = tar_member(b"codegen/config.json", b"{}")
PAX = b"x"


def record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    size = len(body) + 1
    while len(b"%d" % size) + len(body) != size:
        size += 1
    return b"%d" % size + body


def tarball(damage: Damage, says: str) -> Case:
    return Case("tarball", damage, says, "source.tar.gz")


TARS: dict[str, Case] = {
    "tar: empty file": tarball(lambda p: p.write_bytes(b""), "not a readable|truncated"),
    "tar: not gzip": tarball(lambda p: p.write_bytes(b"\0" * 4096), "not a readable"),
    "tar: gzip cut short": tarball(lambda p: p.write_bytes(p.read_bytes()[:90_000]), "not a read"),
    "tar: gzip's CRC": tarball(at(".", lambda d: d.__setitem__(-6, d[-6] ^ 1)), "not a readable"),
    "tar: parent folder": tarball(
        tar(tar_member(b"../../config.json", b"{}")), "refused: .* points outside"
    ),
    "tar: absolute": tarball(tar(tar_member(b"/tmp/config.json", b"{}")), "points outside"),
    "tar: a link for the configuration": tarball(
        tar(tar_header(b"codegen/config.json", 0, b"2", b"/etc/passwd")), "no config.json"
    ),
    "tar: a chain of links": tarball(
        tar(*(tar_header(b"a%d" % i, 0, b"2", b"../" * i) for i in range(99)),
            tar_header(b"codegen/config.json", 0, b"1", b"a98/etc/passwd")), "no config.json",
    ),
    "tar: a device": tarball(tar(tar_header(b"config.json", 0, b"3")), "no config.json"),
    "tar: a pipe": tarball(tar(tar_header(b"config.json", 0, b"6")), "no config.json"),
    "tar: a folder for the configuration": tarball(
        tar(tar_header(b"codegen/config.json/", 0, b"0")), "no config.json"
    ),
    "tar: a link with data": tarball(tar(tar_header(b"x", 512, b"1"), bytes(512)), "has data"),
    "tar: a member twice": tarball(tar(CONFIG, CONFIG), "holds config.json twice"),
    "tar: a gzip bomb": tarball(
        bomb(CONFIG + tar_header(b"codegen/pytorch_model.bin", 4 << 30), 128 << 20),
        "far more than the archive",
    ),
    "tar: a bomb that nobody wants": tarball(
        bomb(CONFIG + tar_header(b"codegen/training.log", 900 << 30), 16 << 20),
        "far more than the archive",
    ),
    "tar: a bomb behind the end": tarball(bomb(CONFIG + bytes(1024), 64 << 20), "data follows"),
    "tar: a name of 8 GB": tarball(tar(tar_header(b"././@LongLink", 8 << 30, b"L")), "a header of"),
    "tar: an extended header of 8 GB": tarball(tar(tar_header(b"x", 8 << 30, PAX)), "a header of"),
    "tar: a negative size": tarball(tar(tar_header(b"x", -1024)), "number|far more"),
    "tar: a negative size in an extended header": tarball(
        tar(tar_member(b"x", record(b"size", b"-1024"), PAX), CONFIG), "a size of"
    ),
    "tar: a size for all": tarball(
        tar(tar_member(b"x", record(b"size", b"0"), b"g"), CONFIG), "for all its members"
    ),
    "tar: an outside name in an extended header": tarball(
        tar(tar_member(b"x", record(b"path", b"../../config.json"), PAX), CONFIG), "points outside"
    ),
    "tar: a sparse file": tarball(tar(tar_header(b"config.json", 1 << 40, b"S")), "sparse"),
    "tar: a sparse file of the other kind": tarball(
        tar(tar_member(b"x", record(b"GNU.sparse.realsize", b"1"), PAX), CONFIG), "sparse"
    ),
    "tar: a checksum": tarball(tar(CONFIG[:100] + b"1" + CONFIG[101:]), "checksum"),
    "tar: without its end": tarball(tar(CONFIG, finish=b""), "truncated"),
    "tar: ends inside a member": tarball(tar(CONFIG[:700], finish=b""), "truncated"),
    "tar: too many members": tarball(tar(*[tar_header(b"x", 0)] * 3000), "more than"),
    "tar: no checkpoint": tarball(tar(tar_member(b"readme", b"hello")), "no config.json"),
}  # fmt: skip

ARCHIVES: dict[str, Case] = {**ZIPS, **NPZS, **TARS}
