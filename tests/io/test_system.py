"""What Linux has alone, and what stands in for it, do the same."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import filelock
import pytest

from cgconvert.io.system import files, locks, memory, names

LINUX_OWN = ("preadv", "pwrite", "posix_fallocate", "fdatasync", "O_DIRECTORY")


@pytest.fixture(params=["linux", "portable"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The ways of this system, and those that are left without Linux's own functions."""
    if request.param == "portable":
        for name in LINUX_OWN:
            monkeypatch.delattr(os, name, raising=False)
        monkeypatch.setattr(locks, "fcntl", None)
        monkeypatch.setattr(filelock, "FileLock", filelock.SoftFileLock)  # its choice without fcntl
    return str(request.param)


@pytest.mark.usefixtures("system")
def test_reads_and_writes_at_positions(tmp_path: Path) -> None:
    path, memory_read = tmp_path / "file", bytearray(4)
    descriptor = files.open_file(path, create=True)
    files.write_at(descriptor, memoryview(b"\r\n\n\x1a"), 6)
    files.write_at(descriptor, memoryview(b"begin"), 0)
    assert files.read_at(descriptor, memoryview(memory_read), 6) == 4
    assert memory_read == b"\r\n\n\x1a"
    assert files.read_at(descriptor, memoryview(memory_read), 8) == 2
    assert files.read_at(descriptor, memoryview(memory_read), 10) == 0
    files.sync_descriptor(descriptor)
    os.close(descriptor)
    assert path.read_bytes() == b"begin\0\r\n\n\x1a"


@pytest.mark.usefixtures("system")
def test_a_file_is_opened_for_what_is_asked(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.open_file(tmp_path / "missing", write=True)
    (tmp_path / "file").write_bytes(b"kept")
    descriptor = files.open_file(tmp_path / "file", create=True)
    os.close(descriptor)
    assert (tmp_path / "file").read_bytes() == b"kept"
    descriptor = files.open_file(tmp_path / "file")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(descriptor, b"x")
    os.close(descriptor)


@pytest.mark.usefixtures("system")
def test_one_call_moves_at_most_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 3)
    descriptor = files.open_file(tmp_path / "file", create=True)
    files.write_at(descriptor, memoryview(b"0123456789"), 0)
    assert files.read_at(descriptor, memoryview(bytearray(8)), 1) == 3
    os.close(descriptor)
    assert (tmp_path / "file").read_bytes() == b"0123456789"


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("size", [0, 3, 100_000])
def test_a_file_gets_its_size_and_keeps_what_it_has(size: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"kept")
    descriptor = files.open_file(path, write=True)
    files.allocate(descriptor, size, path)
    os.close(descriptor)
    assert path.stat().st_size == max(4, size)
    assert path.read_bytes()[:4] == b"kept"


def test_a_full_disk_is_an_error_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    descriptor = files.open_file(tmp_path / "file", create=True)
    with pytest.raises(OSError, match="No space left") as caught:
        files.allocate(descriptor, 1001, tmp_path / "file")
    os.close(descriptor)
    assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / "file").stat().st_size == 0


def test_files_and_folders_are_synced_where_that_is_possible(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    (tmp_path / "file").write_bytes(b"x")
    files.sync(tmp_path / "file")
    files.sync(tmp_path)
    assert len(synced) == (2 if system == "linux" else 1)


@pytest.mark.usefixtures("system")
def test_one_object_at_a_time_holds_a_lock(tmp_path: Path) -> None:
    first, second = locks.FileLock(tmp_path / "lock"), locks.FileLock(tmp_path / "lock")
    first.acquire()
    with pytest.raises(BlockingIOError):
        second.acquire()
    assert first.is_held
    assert not second.is_held
    first.release(remove=True)
    assert os.listdir(tmp_path) == []
    second.acquire()
    assert second.is_held
    second.release()
    second.release()  # it holds none
    assert not second.is_held


@pytest.mark.usefixtures("system")
def test_a_lock_in_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    lock = locks.FileLock(tmp_path / "missing" / "lock")
    with pytest.raises(FileNotFoundError):
        lock.acquire()
    assert not lock.is_held


def test_a_rename_waits_for_a_program_that_has_the_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").write_bytes(b"new")
    replace, refusals = Path.replace, [5, 32]

    def refusing(self: Path, target: Path) -> Path:
        if not refusals:
            return replace(self, target)
        error = PermissionError(errno.EACCES, "in use", str(self))
        error.winerror = refusals.pop()  # type: ignore[attr-defined]
        raise error

    monkeypatch.setattr(Path, "replace", refusing)
    names.rename(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_bytes() == b"new"
    assert not refusals


def test_a_rename_that_is_forbidden_fails_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def refusing(self: Path, target: Path) -> Path:
        calls.append(target)
        raise PermissionError(errno.EACCES, "forbidden", str(self))

    monkeypatch.setattr(Path, "replace", refusing)
    with pytest.raises(PermissionError):
        names.rename(tmp_path / "new", tmp_path / "old")
    assert len(calls) == 1


def test_folders_change_places_without_renameat2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    names.exchange(tmp_path / "new", tmp_path / "old", tmp_path / "replaced")
    assert (tmp_path / "old" / "file").read_text() == "new"
    assert (tmp_path / "replaced" / "file").read_text() == "old"


def _refuse(*_: object) -> None:
    raise OSError(errno.EPERM, "a required privilege is not held by the client")


def test_available_memory_is_known_on_every_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    on_linux = memory.available_memory()
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "missing")
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory.available_memory() == physical // 2  # as on macOS
    assert 0 < on_linux <= physical
    monkeypatch.delattr(os, "sysconf")
    assert memory.available_memory() == memory.ASSUMED_BYTES
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert memory.available_memory() == 2000
