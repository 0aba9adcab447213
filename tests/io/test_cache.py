"""Entries of the cache are believed only as this user wrote them, under the name he wrote."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cgconvert.io import cache
from cgconvert.io.cache import cache_folder, cache_used, read_entry, with_cache, write_entry
from cgconvert.io.system import owners

DATA = b"what the entry holds"


@pytest.fixture
def entry() -> Path:
    """An entry of the cache, which is read as it was written."""
    write_entry("reference", "a", DATA)
    write_entry("reference", "b", b"another")
    assert read_entry("reference", "a") == DATA
    return cache_folder() / "reference" / "a"


def forge(path: Path) -> None:
    """Write an entry as a version without a key did: with its plain SHA-256 before it."""
    forged = b"forged"
    path.write_bytes(hashlib.sha256(forged).digest() + forged)


def flip(path: Path, position: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(bytes(raw))


def swap(left: Path, right: Path) -> None:
    aside = left.with_name("aside")
    left.rename(aside)
    right.rename(left)
    aside.rename(right)


def to_another_kind(path: Path) -> None:
    """Replace an entry by a valid one of the same name and another kind."""
    write_entry("verified", path.name, b"another kind")
    (cache_folder() / "verified" / path.name).replace(path)


def copy_with_key(path: Path) -> None:
    """Put a whole cache, with the key that it was signed with, in the place of this one."""
    copy = cache_folder().with_name("copy")
    shutil.copytree(cache_folder(), copy)
    shutil.rmtree(cache_folder())
    copy.rename(cache_folder())


def link_to_valid(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def to_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(cache.MAX_ENTRY_BYTES + 1)


def replace_key(path: Path) -> None:
    (cache_folder() / "key").write_bytes(bytes(32))


POISONS: dict[str, Callable[[Path], object]] = {
    "an entry of an older version": forge,
    "another byte": lambda path: flip(path, -1),
    "another digest": lambda path: flip(path, 0),
    "an empty file": lambda path: path.write_bytes(b""),
    "two entries exchanged": lambda path: swap(path, path.with_name("b")),
    "an entry of another kind": to_another_kind,
    "a cache with its key, from elsewhere": copy_with_key,
    "a link to a valid entry": link_to_valid,
    "a second name": lambda path: path.with_name("second").hardlink_to(path),
    "a pipe": to_pipe,
    "a folder": to_folder,
    "a file that is too large": grow,
    "another key": replace_key,
    "no key": lambda _: (cache_folder() / "key").unlink(),
    "a key that others can read": lambda _: (cache_folder() / "key").chmod(0o644),
    "a key of another length": lambda _: (cache_folder() / "key").write_bytes(b""),
}


@pytest.mark.parametrize("poison", POISONS)
def test_nothing_else_is_believed(poison: str, entry: Path) -> None:
    POISONS[poison](entry)
    assert read_entry("reference", "a") is None
    if poison == "a folder":
        return
    write_entry("reference", "a", DATA)  # what is refused is made anew
    assert read_entry("reference", "a") == DATA


def test_the_key_is_made_anew_where_it_is_refused(entry: Path) -> None:
    key = cache_folder() / "key"
    before = key.read_bytes()
    key.chmod(0o640)
    write_entry("reference", "c", DATA)
    assert (key.stat().st_mode & 0o777, key.read_bytes() == before) == (0o600, False)
    assert read_entry("reference", "c") == DATA
    assert read_entry("reference", "a") is None


def test_all_is_closed_to_others(entry: Path) -> None:
    for folder in (cache_folder(), entry.parent):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert (cache_folder() / "key").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in cache_folder().iterdir()) == ["key", "reference"]


def test_a_folder_that_others_could_look_into_is_closed(entry: Path) -> None:
    cache_folder().chmod(0o755)
    entry.parent.chmod(0o755)
    assert read_entry("reference", "a") == DATA
    assert cache_folder().stat().st_mode & 0o777 == entry.parent.stat().st_mode & 0o777 == 0o700


def open_to_all(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def shared(folder: Path) -> None:
    """A folder that others can look into, with something else in it."""
    folder.mkdir(mode=0o755)
    (folder / "notes.txt").write_text("")


def below_a_shared_folder(folder: Path) -> None:
    folder.parent.mkdir(exist_ok=True)
    folder.parent.chmod(0o777)


def behind_a_shared_folder(folder: Path) -> None:
    """A link of the user's through a folder that others can write."""
    middle = folder.parent / "middle"
    middle.mkdir()
    (middle / "place").mkdir()
    middle.chmod(0o777)
    folder.symlink_to(middle / "place")


def below_a_file(folder: Path) -> None:
    folder.parent.rmdir()
    folder.parent.write_text("")


def with_a_linked_kind(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / "reference").symlink_to("/tmp")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "others can write in it": (open_to_all, r"others can write in .*/cgconvert; set"),
    "others can look into it": (shared, "others can look into .*, which holds other things"),
    "others can write above it": (below_a_shared_folder, r"others can write in .*; set"),
    "others can write behind a link": (behind_a_shared_folder, r"others can write in .*/middle; "),
    "a file": (lambda folder: folder.write_text(""), "is not a folder"),
    "below a file": (below_a_file, "is not a folder"),
    "a ring of links": (lambda folder: folder.symlink_to(folder.name), "a link in a ring"),
    "a kind that is a link": (with_a_linked_kind, "/reference is a link"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_elsewhere_there_is_no_cache_and_one_line_says_why(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    prepare, reason = REFUSED[kind]
    prepare(cache_folder())
    for _ in range(2):
        write_entry("reference", "a", DATA)
        assert read_entry("reference", "a") is None
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("cgconvert: without a cache: ")
    assert re.search(reason, err), err


def test_links_of_the_user_are_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir(mode=0o700)
    cache_folder().symlink_to(tmp_path / "disk")
    write_entry("reference", "a", DATA)
    assert read_entry("reference", "a") == DATA
    assert (tmp_path / "disk" / "reference" / "a").is_file()


def test_a_place_for_all_with_the_sticky_bit_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    monkeypatch.setenv("CGCONVERT_CACHE", str(tmp_path / "tmp" / "new" / "cache"))
    write_entry("reference", "a", DATA)
    assert read_entry("reference", "a") == DATA


def test_where_it_is_not_allowed_nothing_is_read_or_written(entry: Path) -> None:
    with with_cache(False):
        with with_cache(True):  # a block inside cannot allow it again
            assert read_entry("reference", "a") is None
        write_entry("reference", "new", DATA)
    assert read_entry("reference", "new") is None
    assert read_entry("reference", "a") == DATA


def test_what_is_taken_is_named(entry: Path) -> None:
    with cache_used() as outer:
        with cache_used() as inner:
            read_entry("reference", "a")
        read_entry("groups", "a")
    assert inner == outer == {"reference"}


def test_the_users_own_group_may_write_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of one, as many systems give each user, is the user; one with more members is not."""
    folder = cache_folder().parent
    folder.chmod(0o770)
    monkeypatch.setattr(owners, "_is_group_of_one", lambda group, user: True)
    write_entry("reference", "a", DATA)
    assert read_entry("reference", "a") == DATA
    monkeypatch.setattr(owners, "_has_rights_list", lambda path: path == folder)
    assert read_entry("reference", "a") is None
    folder.chmod(0o700)
    assert read_entry("reference", "a") == DATA
