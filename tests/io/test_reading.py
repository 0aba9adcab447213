"""What is read before the work begins: regular files only, and within one budget."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cgconvert.errors import InputError
from cgconvert.io import reading
from cgconvert.io.followed_links import note_user_path
from cgconvert.io.reading import (
    Budget,
    open_regular,
    read_bytes,
    read_head,
    spend,
    timed_reading,
    within_budget,
)
from cgconvert.io.strict_json import MAX_DEPTH, parse_json, read_json
from cgconvert.write.hashing import checked_sha256, file_sha256


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix_socket:
        unix_socket.bind(os.path.relpath(path))


def make_link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


NOT_REGULAR: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a socket": make_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a pipe behind a link": make_link_to_pipe,
    "a file of the kernel": lambda path: path.symlink_to("/proc/self/environ"),
    "memory": lambda path: path.symlink_to("/proc/self/mem"),
    "a file that never ends": lambda path: path.symlink_to("/proc/kmsg"),
    "a setting of the kernel": lambda path: path.symlink_to("/sys/kernel/profiling"),
}


@pytest.mark.parametrize("kind", NOT_REGULAR)
@pytest.mark.parametrize("read", [open_regular, read_bytes, lambda path: read_head(path, 8)])
def test_only_regular_files_on_a_disk_are_opened(
    kind: str, read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    NOT_REGULAR[kind](tmp_path / "file")
    began = time.monotonic()
    with pytest.raises(InputError, match=r"file: cannot be read: (not a regular|No such)"):
        read(tmp_path / "file")
    assert time.monotonic() - began < 2


def test_what_takes_the_place_of_a_regular_file_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    status = path.stat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(Path, "stat", lambda self: status)
    with pytest.raises(InputError, match="not a regular file"):
        open_regular(path)


def test_a_link_that_appears_after_the_check_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that was opened is judged, not what lies at its path before or afterwards."""
    (tmp_path / "secret").write_bytes(b"secret")
    path = tmp_path / "folder" / "config.json"
    path.parent.mkdir()
    path.write_bytes(b"{}")
    note_user_path(path.parent)
    monkeypatch.setattr(
        reading, "open_descriptor", lambda path: os.open(tmp_path / "secret", os.O_RDONLY)
    )
    if sys.platform == "linux":  # others do not tell the name of an open file
        with pytest.raises(InputError, match="is a link out of its folder"):
            read_bytes(path)


def test_a_link_to_an_open_file_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    if sys.platform == "linux":
        with path.open("rb") as file:
            link = tmp_path / "link"
            link.symlink_to(f"/proc/{os.getpid()}/fd/{file.fileno()}")
            path.unlink()
            assert read_bytes(link) == b"content"


def test_a_size_is_looked_at_before_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, 8 << 40)
    with pytest.raises(InputError, match=r"8\.8 TB, too large for a recipe"):
        read_bytes(path, 1 << 20, kind="a recipe")


def test_a_file_that_is_a_hole_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"header")
    os.truncate(path, 8 << 40)
    began = time.monotonic()
    for read_all in (file_sha256, checked_sha256):
        with pytest.raises(InputError, match=r"file: refused: .* 8\.8 TB are a hole"):
            read_all(path)
    assert time.monotonic() - began < 2
    os.truncate(path, 6)
    assert file_sha256(path) == checked_sha256(path) == hashlib.sha256(b"header").hexdigest()


def test_many_files_cost_no_more_than_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "Budget", lambda: Budget(bytes=1000, values=100, parts=10))
    for number in range(9):
        (tmp_path / f"{number}.json").write_text('{"a": [1, 2, 3]}' + " " * 200)
    with within_budget():
        for number in range(4):
            read_json(tmp_path / f"{number}.json")
        with pytest.raises(InputError, match=r"4\.json: refused: it has 216 B to read"):
            read_json(tmp_path / "4.json")
    for number in range(9):  # each with a budget of its own
        assert read_json(tmp_path / f"{number}.json") == {"a": [1, 2, 3]}


def test_the_same_file_costs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "Budget", lambda: Budget(bytes=20, values=6))
    (tmp_path / "a.json").write_text('{"a": [1, 2, 3]}')
    with within_budget():
        for _ in range(9):
            read_json(tmp_path / "a.json")
        with pytest.raises(InputError, match=r"b: refused: it has 2 values"):
            spend("b", "values", 2)


def test_values_are_counted_before_they_are_parsed(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"a": [' + "[]," * (5 << 20) + "[]]}")
    with pytest.raises(InputError, match="values to read before the work begins"):
        read_json(path)


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 900, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a": ', "}")])
def test_levels_of_objects_and_lists_are_counted(levels: int, opening: str, closing: str) -> None:
    inner = levels - 1
    with pytest.raises(InputError, match="x: is not valid JSON"):
        parse_json(f'{{"a": {opening * inner}1{closing * inner}}}', "x")


def test_the_largest_number_of_levels_is_read() -> None:
    inner = MAX_DEPTH - 1
    assert parse_json(f'{{"a": {"[" * inner}1{"]" * inner}}}', "x")


def test_time_is_counted_while_files_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "thread_time", lambda: now[0])
    with within_budget():
        with timed_reading("a"), timed_reading("part of a"):
            now[0] += 6
        now[0] += 100  # the work
        with timed_reading("a"):
            now[0] += 3.9
        with timed_reading("b"):
            now[0] += 0.2
            with pytest.raises(InputError, match="b: refused: it takes too long"):
                spend("b", "parts", 1)
            now[0] -= 0.2
