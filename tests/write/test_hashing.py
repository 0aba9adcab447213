"""A file is hashed while it is written, and an archive is checked while it is hashed."""

from __future__ import annotations

import hashlib
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cgconvert.errors import InputError
from cgconvert.formats.read import read
from cgconvert.io.stored_zip import read_members
from cgconvert.write.hashing import STEP_BYTES, StreamingHash, checked_sha256, hash_checkpoint


def test_a_file_is_hashed_while_it_is_written(tmp_path: Path) -> None:
    data = random.Random(0).randbytes(3 * STEP_BYTES + 12345)
    path = tmp_path / "file"
    with path.open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, len(data))
        streaming_hash = StreamingHash(path)
        for start in range(0, len(data), 1 << 20):
            os.pwrite(file.fileno(), data[start : start + (1 << 20)], start)
            streaming_hash.allow(min(len(data), start + (1 << 20)))
    assert streaming_hash.hexdigest(len(data)) == hashlib.sha256(data).hexdigest()
    streaming_hash.close()


def test_a_file_that_becomes_shorter_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"short")
    streaming_hash = StreamingHash(tmp_path / "file")
    with pytest.raises(OSError, match="ended while it was written"):
        streaming_hash.hexdigest(6)
    streaming_hash.close()


def damaged(path: Path, member: str) -> Path:
    """Flip a bit in the middle of the first member whose name ends so."""
    place = next(m for name, m in read_members(path).items() if name.endswith(member))
    data = bytearray(path.read_bytes())
    data[place.offset + place.size // 2] ^= 1
    path.write_bytes(data)
    return path


def test_a_damaged_tensor_is_named(make_checkpoint: Callable[..., Path]) -> None:
    source = make_checkpoint("torch")
    path = source / "pytorch_model.bin"
    checkpoint = read(str(source))
    embedding = next(checkpoint.decoder.wte.leaves())
    name = next(n for n, m in read_members(path).items() if m.offset == embedding.offset)
    damaged(path, name)
    with pytest.raises(InputError, match=r"tensor transformer\.wte\.weight is damaged: its CRC"):
        hash_checkpoint(checkpoint)


def test_a_damaged_member_without_a_tensor_of_the_model_is_named(
    make_checkpoint: Callable[..., Path],
) -> None:
    source = make_checkpoint("torch")
    path = source / "pytorch_model.bin"
    checkpoint = read(str(source))
    damaged(path, "data.pkl")
    with pytest.raises(InputError, match=r"/data\.pkl is damaged: its CRC differs"):
        hash_checkpoint(checkpoint)


def test_an_archive_is_checked_across_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cgconvert.write.hashing.READ_BYTES", 1000)
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for number, size in enumerate((0, 10, 5000, 999, 0, 3000)):
            archive.writestr(f"arr_{number}.npy", random.Random(number).randbytes(size))
    assert checked_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    damaged(path, "arr_5.npy")
    with pytest.raises(InputError, match=r"arr_5\.npy is damaged"):
        checked_sha256(path)


def test_hashing_stops_when_cancelled(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    assert checked_sha256(tmp_path / "file", is_cancelled=lambda: True) == ""
