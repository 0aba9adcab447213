"""A file is replaced at once or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cgconvert.io.whole_file import write_atomic


def test_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    write_atomic(path, b"a long first text")
    (tmp_path / ".verdict.json.cgconvert-tmp").write_bytes(b"of a run that was killed" * 9)
    write_atomic(path, b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["verdict.json"]


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "verdict.json"
    path.write_bytes(b"earlier")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"later")
    assert path.read_bytes() == b"earlier"
    assert os.listdir(tmp_path) == ["verdict.json"]


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link.json").symlink_to("there/real.json")
    write_atomic(tmp_path / "link.json", b"text")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "there/real.json").read_bytes() == b"text"


def test_two_at_once(tmp_path: Path) -> None:
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
