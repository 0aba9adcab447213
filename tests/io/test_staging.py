"""A file is replaced at once or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cgconvert.io.atomic_file import atomic_path, write_atomic


def test_write_atomic_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    write_atomic(path, b"a long first text")
    write_atomic(path, b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["verdict.json"]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "verdict.json"
    path.write_bytes(b"earlier")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"later")
    assert path.read_bytes() == b"earlier"
    assert os.listdir(tmp_path) == ["verdict.json"]


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "link.json").symlink_to("precious")
    write_atomic(tmp_path / "link.json", b"text")
    assert not (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "link.json").read_bytes() == b"text"
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_temporary_names_are_not_shared(tmp_path: Path) -> None:
    path, partials = tmp_path / "file", []
    with atomic_path(path) as first, atomic_path(path) as second:
        partials = [first, second]
        assert {oct(partial.stat().st_mode & 0o777) for partial in partials} == {"0o600"}
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert len({partial.name for partial in partials}) == 2
    assert path.read_bytes() == b"first"  # its block ended last
    assert os.listdir(tmp_path) == ["file"]


def test_concurrent_writes_never_mix(tmp_path: Path) -> None:
    path, texts = tmp_path / "file", [bytes([65 + n]) * 100_000 for n in range(8)]
    seen = set()

    def write(text: bytes) -> None:
        for _ in range(20):
            write_atomic(path, text)
            seen.add(path.read_bytes())

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen <= set(texts)
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_block_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"earlier")

    def fail() -> None:
        with atomic_path(path, durable=False) as partial:
            partial.write_bytes(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_bytes() == b"earlier"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_that_is_not_durable_is_not_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    write_atomic(tmp_path / "cache", b"text", durable=False)
    assert not synced
    write_atomic(tmp_path / "file", b"text")
    assert len(synced) == 1
