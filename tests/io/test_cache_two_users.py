"""Another user prepares or changes the cache: nothing that he made is believed, or written to."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cgconvert.errors import OutputError
from cgconvert.io import cache
from cgconvert.io.cache import read_entry, write_entry
from cgconvert.io.cache_contents import cache_contents
from cgconvert.io.cache_key import ensure_key
from cgconvert.io.system.own_files import fault_of_place
from cgconvert.sources.tarball import unpack
from tests.sources.test_unpacked import FILES, content, pack
from tests.support.two_users import NOBODY, call_as_nobody, make_shared_folder, run_as

DATA, FORGED = b"what root wrote", b"what nobody wrote"


@pytest.fixture
def folder(shared_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the cache, at which nothing lies yet."""
    monkeypatch.setenv("CGCONVERT_CACHE", str(shared_folder / "cache"))
    return shared_folder / "cache"


def forge_cache(folder: Path) -> None:
    """Make a whole cache that all can read and write, with valid entries under a key of one's own.

    An entry of older versions is in it too: they had no key.
    """
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "reference").mkdir()
    key = ensure_key(folder)
    (folder / "reference" / "a").write_bytes(cache._digest(key, "reference", "a", FORGED) + FORGED)
    (folder / "reference" / "b").write_bytes(hashlib.sha256(FORGED).digest() + FORGED)
    for path in (folder / "reference", *(folder / "reference").iterdir()):
        path.chmod(0o777)


def link_cache(folder: Path) -> None:
    forge_cache(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")


def link_to_roots(folder: Path) -> None:
    """Make a link to a folder of root's, in which root would then write."""
    folder.symlink_to(folder.parents[1])


PREPARED: dict[str, tuple[Callable[[Path], None], str]] = {
    "the whole cache": (forge_cache, "cache belongs to another user"),
    "a link to it": (link_cache, "cache is a link of another user"),
    "a link to a folder of root's": (link_to_roots, "cache is a link of another user"),
}


@pytest.mark.parametrize("what", PREPARED)
def test_what_another_user_prepared_is_refused(
    what: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    prepare, reason = PREPARED[what]
    call_as_nobody(prepare, folder)
    if not folder.parent.stat().st_mode & 0o1000:
        reason = f"others can write in {folder.parent}"
    before = sorted(path for path in folder.parents[1].rglob("*"))
    for name in "ab":
        assert read_entry("reference", name) is None
        write_entry("reference", name, DATA)
    assert sorted(path for path in folder.parents[1].rglob("*")) == before
    err = capfd.readouterr().err
    assert (err.count("\n"), err.startswith("cgconvert: without a cache: ")) == (1, True)
    assert reason in err
    archive = pack(tmp_path / "codegen.tar.gz")
    with pytest.raises(OutputError, match=reason):
        unpack(archive)
    with cache.with_cache(False):
        assert content(unpack(archive)[0]) == FILES


def test_a_link_that_appears_after_the_look_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.parent.chmod(0o1777)
    looked_at: list[Path] = []

    def looking(path: Path) -> str:
        fault = fault_of_place(path)
        if not looked_at:
            call_as_nobody(folder.symlink_to, tmp_path)
        looked_at.append(path)
        return fault

    monkeypatch.setattr(cache, "fault_of_place", looking)
    write_entry("reference", "a", DATA)
    assert len(looked_at) > 1
    assert os.listdir(tmp_path) == []


def test_a_folder_above_it_of_another_user_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    above = folder.parent / "above"
    call_as_nobody(above.mkdir)
    monkeypatch.setenv("CGCONVERT_CACHE", str(above / "cache"))
    write_entry("reference", "a", DATA)
    assert not any(above.iterdir())


@pytest.fixture
def entry(folder: Path) -> Path:
    """An entry of root's, in a place where others can write nothing but what is theirs."""
    folder.parent.chmod(0o1777)
    write_entry("reference", "a", DATA)
    assert read_entry("reference", "a") == DATA
    return folder / "reference" / "a"


def attempts(entry: Path) -> list[str]:
    """Try as another user to read, change, link and exchange what root has; name what worked."""
    folder = entry.parents[1]
    tries: dict[str, Callable[[], object]] = {
        "read": entry.read_bytes,
        "read the key": (folder / "key").read_bytes,
        "list": lambda: list(folder.iterdir()),
        "write": lambda: entry.write_bytes(FORGED),
        "add": lambda: (entry.parent / "b").write_bytes(FORGED),
        "remove": entry.unlink,
        "rename": lambda: folder.rename(folder.with_name("moved")),
        "link": lambda: (folder.parent / "link").hardlink_to(folder / "key"),
        "open": lambda: folder.chmod(0o777),
    }
    worked = []
    for name, call in tries.items():
        try:
            call()
        except OSError:
            continue
        worked.append(name)
    return worked


def test_another_user_reaches_nothing_in_it(entry: Path) -> None:
    assert call_as_nobody(attempts, entry) == []
    assert read_entry("reference", "a") == DATA


def give_away(path: Path) -> None:
    os.chown(path, NOBODY, NOBODY)


FOREIGN: dict[str, Callable[[Path], None]] = {
    "an entry": give_away,
    "the folder of its kind": lambda entry: give_away(entry.parent),
    "the key": lambda entry: give_away(entry.parents[1] / "key"),
    "the cache": lambda entry: give_away(entry.parents[1]),
}


@pytest.mark.parametrize("part", FOREIGN)
def test_a_part_of_another_user_is_not_believed(part: str, entry: Path) -> None:
    FOREIGN[part](entry)
    assert read_entry("reference", "a") is None


def test_a_key_of_another_user_is_made_anew(entry: Path) -> None:
    key = entry.parents[1] / "key"
    foreign = key.read_bytes()
    give_away(key)
    write_entry("reference", "b", DATA)
    assert (key.stat().st_uid, key.read_bytes() == foreign) == (0, False)
    assert read_entry("reference", "b") == DATA
    assert read_entry("reference", "a") is None


@pytest.mark.parametrize("part", ["folder", "file"])
def test_an_unpacked_folder_of_another_user_is_unpacked_anew(
    part: str, entry: Path, tmp_path: Path
) -> None:
    archive = pack(tmp_path / "codegen.tar.gz")
    unpacked, origin = unpack(archive)
    give_away(unpacked if part == "folder" else unpacked / "config.json")
    (unpacked / "pytorch_model.bin").write_bytes(FORGED)
    assert unpack(archive) == (unpacked, origin)
    assert content(unpacked) == FILES
    assert {path.stat().st_uid for path in (unpacked, *unpacked.iterdir())} == {0}


def test_clear_leaves_what_belongs_to_another_user(entry: Path) -> None:
    write_entry("reference", "0" * 64, DATA)
    write_entry("reference", "1" * 64, DATA)
    give_away(entry.with_name("0" * 64))
    items = {item.path.name: item.is_own for item in cache_contents(())}
    assert items == {"a": False, "0" * 64: False, "1" * 64: True}


def test_commands_go_on_without_it_and_say_why(tmp_path: Path) -> None:
    with make_shared_folder(sticky=True) as shared:
        folder = shared / "cache"
        call_as_nobody(forge_cache, folder)

        def run(*arguments: str) -> tuple[int, str]:
            ending = run_as("root", *arguments, cwd=tmp_path, CGCONVERT_CACHE=str(folder))
            return ending.returncode, ending.stderr

        code, err = run("to-gguf", "codegen-tiny-mono", "-o", "x.gguf")
        line = f"cgconvert: without a cache: {folder} belongs to another user; set CGCONVERT_CACHE"
        assert (code, err.count(line)) == (0, 1), err
        archive = pack(tmp_path / "codegen.tar.gz")
        code, err = run("inspect", archive.name)
        assert (code, err.count("\n")) == (5, 1)
        assert f"cannot be unpacked into the cache: {folder} belongs to another user" in err
        code, err = run("inspect", archive.name, "--no-cache")
        assert "cache" not in err
        code, err = run("cache", "clear")
        assert (code, err.count("\n")) == (5, 1)
        assert (folder / "reference" / "a").is_file()
