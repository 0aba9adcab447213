"""A tarball's unpacked folder is believed only if archive and folder are as when it was made."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from cgconvert.errors import InputError, OutputError
from cgconvert.io.cache import cache_folder, cache_used, with_cache, write_entry
from cgconvert.sources import tarball
from cgconvert.sources.tarball import unpack

FILES: Mapping[str, bytes] = {
    "config.json": b'{"model_type": "codegen"}',
    "pytorch_model.bin": bytes(1000),
}


def pack(path: Path, files: Mapping[str, bytes] = FILES) -> Path:
    """Write a tarball without compression, so that files of one size give archives of one size."""
    with tarfile.open(path, "w:gz", compresslevel=0) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"codegen/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return pack(tmp_path / "codegen.tar.gz")


@pytest.fixture
def unpackings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The archives that were unpacked and not taken from the cache."""
    paths: list[Path] = []
    unpack_into = tarball._unpack_into

    def recording(path: Path, folder: Path) -> Any:
        paths.append(path)
        return unpack_into(path, folder)

    monkeypatch.setattr(tarball, "_unpack_into", recording)
    return paths


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_unchanged_archive_is_unpacked_once(archive: Path, unpackings: list[Path]) -> None:
    first = unpack(archive)
    assert first[1] == {"archive": archive.name, "archive_sha256": sha256(archive)}
    with cache_used() as kinds:
        assert unpack(archive) == first
    assert (len(unpackings), kinds) == (1, {"archives", "unpacked"})
    assert content(first[0]) == FILES


def rewrite(path: Path, data: bytes) -> None:
    """Write other bytes of the same size, and restore the modification time."""
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(data)
    os.utime(path, ns=times)


def replace_weights(folder: Path) -> None:
    (folder / "new").write_bytes(bytes([1]) * 1000)
    (folder / "new").replace(folder / "pytorch_model.bin")


def link_weights(folder: Path) -> None:
    weights = folder / "pytorch_model.bin"
    weights.rename(folder.parent / "elsewhere")
    weights.symlink_to(folder.parent / "elsewhere")


def link_folder(folder: Path) -> None:
    copy = folder.with_name("copy")
    folder.rename(copy)
    folder.symlink_to(copy)


def forge_record(folder: Path) -> None:
    """Change a file, and put a record of the older form into the folder."""
    rewrite(folder / "pytorch_model.bin", bytes([1]) * 1000)
    (folder / ".cgconvert-archive.json").write_text('{"archive": "x", "archive_sha256": "0"}')


def forget_record(folder: Path) -> None:
    rewrite(folder / "pytorch_model.bin", bytes([1]) * 1000)
    shutil.rmtree(cache_folder() / "archives")


POISONS: dict[str, Callable[[Path], object]] = {
    "other weights": replace_weights,
    "other weights of the same time": lambda folder: rewrite(
        folder / "pytorch_model.bin", bytes([1]) * 1000
    ),
    "another configuration": lambda folder: (folder / "config.json").write_text("{}"),
    "no configuration": lambda folder: (folder / "config.json").unlink(),
    "weights beside, that are preferred": lambda folder: (folder / "model.safetensors").write_bytes(
        b""
    ),
    "a hidden file": lambda folder: (folder / ".hidden").write_bytes(b""),
    "weights that are a link": link_weights,
    "weights with a second name": lambda folder: (folder.parent / "elsewhere").hardlink_to(
        folder / "pytorch_model.bin"
    ),
    "a folder that is a link": link_folder,
    "an old record": forge_record,
    "no record": forget_record,
}


@pytest.mark.parametrize("poison", POISONS)
def test_a_poisoned_folder_is_unpacked_anew(
    poison: str, archive: Path, unpackings: list[Path]
) -> None:
    folder, origin = unpack(archive)
    POISONS[poison](folder)
    assert unpack(archive) == (folder, origin)
    assert not folder.is_symlink()
    assert content(folder) == FILES
    assert len(unpackings) == 2


def test_files_that_were_only_touched_are_hashed_once(
    archive: Path, unpackings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, origin = unpack(archive)
    os.utime(folder / "pytorch_model.bin")
    hashed = []
    digest = hashlib.file_digest

    def recording(file: io.FileIO, name: str) -> Any:
        hashed.append(os.fstat(file.fileno()).st_ino)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", recording)
    assert unpack(archive) == unpack(archive) == (folder, origin)
    assert hashed == [(folder / "pytorch_model.bin").stat().st_ino]
    assert len(unpackings) == 1


OTHER: Mapping[str, bytes] = {**FILES, "pytorch_model.bin": bytes([2]) * 1000}


def over_it(archive: Path, other: Path) -> None:
    rewrite(archive, other.read_bytes())


def in_its_place(archive: Path, other: Path) -> None:
    status = archive.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(archive)


@pytest.mark.parametrize("change", [over_it, in_its_place])
def test_another_archive_of_the_same_path_size_and_time_is_unpacked(
    change: Callable[[Path, Path], None], archive: Path, unpackings: list[Path], tmp_path: Path
) -> None:
    unpack(archive)
    before = archive.stat()
    change(archive, pack(tmp_path / "another.tar.gz", OTHER))
    after = archive.stat()
    assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    folder, origin = unpack(archive)
    assert content(folder) == OTHER
    assert origin["archive_sha256"] == sha256(archive)
    assert len(unpackings) == 2


def test_the_record_of_another_folder_is_not_believed(archive: Path, tmp_path: Path) -> None:
    folder, _ = unpack(archive)
    other, _ = unpack(pack(tmp_path / "other.tar.gz", OTHER))
    records = cache_folder() / "archives"
    (records / other.name).replace(records / folder.name)
    shutil.rmtree(folder)
    other.rename(folder)
    assert content(unpack(archive)[0]) == FILES


@pytest.mark.parametrize("data", [b"", b"[]", b'{"origin": {}}', b'{"a": 1}'])
def test_a_record_of_another_form_is_made_again(
    data: bytes, archive: Path, unpackings: list[Path]
) -> None:
    folder, _ = unpack(archive)
    write_entry("archives", folder.name, data)
    assert content(unpack(archive)[0]) == FILES
    assert len(unpackings) == 2


def test_without_the_cache_a_temporary_folder_serves(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with with_cache(False):
        folder, origin = unpack(archive)
        assert (folder.parent, folder.stat().st_mode & 0o777) == (tmp_path, 0o700)
        assert origin == {"archive": archive.name, "archive_sha256": sha256(archive)}
    assert content(folder) == FILES
    assert not cache_folder().exists()
    tarball._temporary_folders.pop().cleanup()
    assert not folder.exists()


def test_a_refused_cache_is_an_error_that_says_why(archive: Path) -> None:
    cache_folder().mkdir()
    cache_folder().chmod(0o777)
    expected = (
        r"codegen.tar.gz: cannot be unpacked into the cache: others can write in .*; set CGCO"
    )
    with pytest.raises(OutputError, match=expected):
        unpack(archive)
    assert not any(cache_folder().iterdir())


def test_a_refused_archive_leaves_the_folders_that_were_there(tmp_path: Path) -> None:
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(b"no archive")
    with pytest.raises(InputError):
        unpack(broken)
    assert not cache_folder().exists()
    cache_folder().mkdir(mode=0o700)
    with pytest.raises(InputError):
        unpack(broken)
    assert list(cache_folder().iterdir()) == []
