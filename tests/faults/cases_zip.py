"""Broken and hostile zip archives: torch's weight files and numpy's npz."""

from __future__ import annotations

import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.faults.cases_pickle import FILE, zip_again
from tests.faults.matrix import CONVERT_COMMANDS, Case, Damage

__all__ = ["ZIPS", "change_bytes", "pack"]

NPZ = Path("1000/model/0.npz")


def change_bytes(file: str | Path, change: Callable[[bytearray], object]) -> Damage:
    """Change the bytes of a file in the source; `change` edits them or returns new ones."""

    def damage(source: Path) -> None:
        path = source / file if source.is_dir() else source
        data = bytearray(path.read_bytes())
        path.write_bytes(bytes(change(data) or data))  # type: ignore[call-overload]

    return damage


def change_members(change: Callable[[dict[str, bytes]], object], file: str | Path = FILE,
            **options: int) -> Damage:  # fmt: skip
    return lambda source: zip_again(source / file, change, **options)


def replace_name(old: str, new: str) -> Damage:
    """Replace a member's name wherever it stands."""
    return change_bytes(FILE, lambda data: data.replace(old.encode(), new.encode()))


def end_record(data: bytearray) -> int:
    """Return the offset of the end-of-central-directory record."""
    return data.rindex(b"PK\5\6")


def pack(data: bytearray, offset: int, kind: str, *values: int) -> None:
    struct.pack_into(kind, data, offset, *values)


def add_comment(data: bytearray) -> bytearray:
    """The archive with a comment of four bytes, which look like the start of an end record."""
    pack(data, end_record(data) + 20, "<H", 4)
    return data + b"PK\5\6"


def directory_entry(data: bytearray, name: bytes) -> int:
    """Return the offset of the directory entry of the member whose name ends so."""
    return data.rindex(b"PK\1\2", 0, data.rindex(name))


def add_member(path: Path, name: str) -> None:
    """Add a member that holds an empty pickled dict, even if the name is taken."""
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr(name, b"\x80\x02}.")


def pickle_name(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        return next(n for n in archive.namelist() if n.endswith("/data.pkl"))


def flip_bit(name: bytes) -> Damage:
    """Flip one bit of a member's data."""

    def change(data: bytearray) -> None:
        entry = directory_entry(data, name)
        (npy_header,) = struct.unpack_from("<I", data, entry + 42)
        names, extras = struct.unpack_from("<2H", data, npy_header + 26)
        data[npy_header + 30 + names + extras + 9] ^= 0x40

    return change_bytes(FILE, change)


def rename_in_local_header(data: bytearray) -> None:
    """Give a member another name in its local header than in the directory."""
    place = data.index(b"data/1")
    data[place : place + 6] = b"data/7"


def overlap_members(data: bytearray) -> None:
    """Let two directory entries point to the same data."""
    first, second = directory_entry(data, b"data/0"), directory_entry(data, b"data/1")
    data[second + 42 : second + 46] = data[first + 42 : first + 46]


TORCH_ZIPS: dict[str, Case] = {
    "zip: empty file": Case(
        "torch", change_bytes(FILE, bytearray.clear), "the file is empty", FILE
    ),
    "zip: git-lfs pointer": Case(
        "torch",
        change_bytes(FILE, lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "git-lfs pointer",
        FILE,
    ),
    "zip: HTML page": Case(
        "torch", change_bytes(FILE, lambda _: b"\n<!doctype html><html>"), "HTML page", FILE
    ),
    "zip: truncated": Case(
        "torch", change_bytes(FILE, lambda d: d[: len(d) // 2]), "truncated", FILE
    ),
    "zip: cut by a byte": Case("torch", change_bytes(FILE, lambda d: d[:-1]), "truncated", FILE),
    "zip: bytes behind": Case(
        "torch", change_bytes(FILE, lambda d: d + b"x"), "something follows", FILE
    ),
    "zip: bytes before": Case(
        "torch", change_bytes(FILE, lambda d: b"PK\3\4" + bytes(96) + d), "directory", FILE
    ),
    "zip: a comment": Case(
        "torch",
        change_bytes(FILE, add_comment),
        "end",
        FILE,
    ),
    "zip: two data.pkl": Case(
        "torch", lambda s: add_member(s / FILE, "other/data.pkl"), "holds 2 data.pkl", FILE
    ),
    "zip: data.pkl twice": Case(
        "torch", lambda s: add_member(s / FILE, pickle_name(s / FILE)), "occurs twice", FILE
    ),
    "zip: DATA.PKL": Case(
        "torch", lambda s: add_member(s / FILE, "archive/DATA.PKL"), "holds 2 data.pkl", FILE
    ),
    "zip: no data.pkl": Case("torch", replace_name("data.pkl", "data.pkx"), "holds 0", FILE),
    "zip: deflated": Case(
        "torch",
        change_members(lambda m: None, compression=zipfile.ZIP_DEFLATED),
        "compressed",
        FILE,
    ),
    "zip: a bomb of LZMA": Case(
        "torch",
        change_members(
            lambda m: m.update({"archive/data/0": bytes(30 << 20)}), compression=zipfile.ZIP_LZMA
        ),
        "compressed",
        FILE,
    ),
    "zip: encrypted": Case(
        "torch",
        change_bytes(FILE, lambda d: pack(d, directory_entry(d, b"data/0") + 8, "<H", 1)),
        "encrypted",
        FILE,
    ),
    "zip: a method of compression in one header only": Case(
        "torch",
        change_bytes(FILE, lambda d: pack(d, 8, "<H", 8)),
        "local header that disagrees with the central directory",
        FILE,
    ),
    "zip: another name in the other header": Case(
        "torch",
        change_bytes(FILE, rename_in_local_header),
        "local header that disagrees with the central directory",
        FILE,
    ),
    "zip: members over one another": Case(
        "torch", change_bytes(FILE, overlap_members), "refused", FILE
    ),
    "zip: a member beyond the end": Case(
        "torch",
        change_bytes(FILE, lambda d: pack(d, directory_entry(d, b"data/1") + 42, "<I", 0xF0000000)),
        "directory points beyond its end",
        FILE,
    ),
    "zip: sizes that lie": Case(
        "torch",
        change_bytes(
            FILE, lambda d: pack(d, directory_entry(d, b"data/1") + 20, "<2I", 1 << 30, 1 << 30)
        ),
        "refused|directory",
        FILE,
    ),
    "zip: a directory of 4 GB": Case(
        "torch",
        change_bytes(FILE, lambda d: pack(d, end_record(d) + 12, "<I", 0xFFFFFFF0)),
        "directory",
        FILE,
    ),
    "zip: entries that are not there": Case(
        "torch",
        change_bytes(FILE, lambda d: pack(d, end_record(d) + 8, "<2H", 999, 999)),
        "end records of its directory disagree",
        FILE,
    ),
    "zip: several disks": Case(
        "torch",
        change_bytes(FILE, lambda d: pack(d, end_record(d) + 4, "<H", 1)),
        "end records of its directory disagree",
        FILE,
    ),
    "zip: a member on another disk": Case(
        "torch",
        change_bytes(FILE, lambda d: pack(d, directory_entry(d, b"data/1") + 34, "<H", 1)),
        r"member '\S+/data/1\d*' lies in another part of a split archive",
        FILE,
    ),
    "zip: two sizes of one member": Case(
        "torch",
        change_bytes(FILE, lambda d: pack(d, directory_entry(d, b"data/1") + 20, "<I", 5)),
        r"member '\S+/data/1\d*' has 5 bytes but declares \d+",
        FILE,
    ),
    "zip: zip64 says something else": Case(
        "torch",
        change_bytes(
            FILE,
            lambda d: (
                d[:-22]
                + struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, 46, 0)
                + struct.pack("<4sIQI", b"PK\6\7", 0, len(d) - 22, 1)
                + d[-22:]
            ),
        ),
        "end records of its directory disagree|directory",
        FILE,
    ),
    "zip: a flipped bit in the pickle": Case("torch", flip_bit(b"data.pkl"), "CRC", FILE),
    "zip: a flipped bit in a weight": Case(
        "torch",
        flip_bit(b"data/3"),
        r"tensor transformer\.\S+ is damaged: its CRC differs",
        FILE,
        (*CONVERT_COMMANDS, "reference"),
    ),
    "zip: a storage that is missing": Case(
        "torch", replace_name("data/3", "data/x"), "the data of tensor .* is missing", FILE
    ),
    "zip: a name that is not UTF-8": Case(
        "torch", change_bytes(FILE, lambda d: d.replace(b"data/3", b"data/\xff")), "not UTF-8", FILE
    ),
    "zip: a shard that is none": Case(
        "torch-sharded",
        change_bytes("pytorch_model-00002-of-00002.bin", lambda d: d[:5000]),
        "truncated",
        "pytorch_model-00002-of-00002.bin",
    ),
    "zip: big-endian": Case(
        "torch",
        change_members(lambda m: m.update({n: b"big" for n in m if n.endswith("byteorder")})),
        "little-endian",
        FILE,
    ),
}


def change_array(number: int, change: Callable[[np.ndarray], object]) -> Damage:
    def damage(source: Path) -> None:
        arrays = dict(np.load(source / NPZ))
        arrays[f"arr_{number}"] = change(arrays[f"arr_{number}"])
        np.savez(source / NPZ, **arrays)

    return damage


def npy_header(text: str) -> Damage:
    """Replace the header of the first array."""

    def change(members: dict[str, bytes]) -> None:
        raw = text.encode().ljust(118 if len(text) < 118 else len(text) + 1)
        members["arr_0.npy"] = b"\x93NUMPY\1\0" + struct.pack("<H", len(raw)) + raw + bytes(256)

    return change_members(change, NPZ)


NPZS: dict[str, Case] = {
    "npz: truncated": Case(
        "jaxformer", change_bytes(NPZ, lambda d: d[:-5000]), "truncated", "0.npz"
    ),
    "npz: objects": Case(
        "jaxformer",
        change_array(7, lambda a: np.array([{}], dtype=object)),
        "expected float32",
        "0.npz",
    ),
    "npz: a bomb": Case(
        "jaxformer",
        lambda s: np.savez_compressed(s / NPZ, *(np.zeros(1 << 20, np.float32) for _ in range(14))),
        "compressed",
        "0.npz",
    ),
    "npz: Fortran order of another shape": Case(
        "jaxformer", change_array(7, lambda a: a.T), r"\(qkv\) is \[192, 64, 1\]", "0.npz"
    ),
    "npz: whole numbers": Case(
        "jaxformer", change_array(7, lambda a: a.astype(np.int64)), "expected float32", "0.npz"
    ),
    "npz: two fields of a byte": Case(
        "jaxformer", change_array(0, lambda a: np.zeros(64, "u1, u1")), "expected", "0.npz"
    ),
    "npz: another shape": Case(
        "jaxformer", change_array(7, lambda a: a[:, 1:]), "arr_7.npy", "0.npz"
    ),
    "npz: a leaf is missing": Case(
        "jaxformer", change_members(lambda m: m.pop("arr_3.npy"), NPZ), "holds 13 members", "0.npz"
    ),
    "npz: a leaf too many": Case(
        "jaxformer",
        change_members(lambda m: m.update({"../x.npy": b""}), NPZ),
        "15 members",
        "0.npz",
    ),
    "npz: a header that is a program": Case(
        "jaxformer",
        npy_header("__import__('os').system('touch payload-was-run')"),
        "not an array",
        "0.npz",
    ),
    "npz: a header that lies": Case(
        "jaxformer",
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1073741824,)}"),
        "shorter or longer",
        "0.npz",
    ),
    "npz: a shape beyond counting": Case(
        "jaxformer",
        npy_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'9' * 40},)}}"),
        "impossible shape",
        "0.npz",
    ),
    "npz: brackets in brackets": Case("jaxformer", npy_header("(" * 3000), "not an array", "0.npz"),
    "npz: a flipped bit": Case(
        "jaxformer",
        change_bytes(NPZ, lambda d: d.__setitem__(600_000, d[600_000] ^ 1)),
        "CRC differs",
        "0.npz",
        (*CONVERT_COMMANDS, "reference"),
    ),
}

ZIPS: dict[str, Case] = {**TORCH_ZIPS, **NPZS}
