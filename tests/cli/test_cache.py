"""`cgconvert cache` lists, verifies and clears what is cgconvert's, and touches nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import cgconvert
from cgconvert.cli.main import main
from cgconvert.io.cache import cache_folder, write_entry
from cgconvert.sources.tarball import unpack
from tests.sources.test_unpacked import pack

Run = Callable[..., tuple[int, str, str]]

ENTRY = "0" * 64


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `cgconvert cache`; returns its exit code and what it printed."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(["cache", *arguments])
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """A cache with an entry, the leaving of a killed run, and an unpacked tarball: its folder."""
    write_entry("reference", f"{ENTRY}.safetensors", b"outputs")
    (cache_folder() / "reference" / f".{ENTRY}.json.{'a' * 16}").write_bytes(b"half")
    return unpack(pack(tmp_path / "codegen.tar.gz"))[0]


def test_an_empty_cache_holds_nothing(run: Run) -> None:
    nothing = f"{cache_folder()} holds nothing of cgconvert's\n"
    assert run() == run("list") == run("verify") == (0, nothing, "")
    assert run("clear") == (0, f"removed 0 items, 0 B, from {cache_folder()}\n", "")
    assert not cache_folder().exists()


def test_the_list_has_kinds_sizes_and_ages(run: Run, unpacked: Path) -> None:
    hours = 3 * 3600
    entry = cache_folder() / "reference" / f"{ENTRY}.safetensors"
    os.utime(entry, (entry.stat().st_mtime - hours,) * 2)
    code, out, err = run()
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert re.fullmatch(r"outputs of the reference: 2 items, 43 B, \d s to 3 h old", lines[0])
    assert lines[1].startswith("SHA-256 of unpacked tarballs and of their files: 1 item, ")
    assert re.fullmatch(r"checkpoints from tarballs: 1 item, 1.02 kB, \d s old", lines[2])
    assert re.fullmatch(rf"  {unpacked.name}  1.02 kB, \d s old", lines[3])
    assert lines[4].endswith(f" in {cache_folder()}; `cgconvert cache clear` removes it")


def test_what_is_void_is_named(run: Run, unpacked: Path) -> None:
    partial = next((cache_folder() / "reference").glob(".*"))
    partial.unlink()
    code, out, err = run("verify")
    assert (code, out, err) == (0, f"3 items in {cache_folder()} as you wrote them\n", "")
    weights = unpacked / "pytorch_model.bin"
    times = weights.stat().st_atime_ns, weights.stat().st_mtime_ns
    weights.write_bytes(bytes([1]) * 1000)
    os.utime(weights, ns=times)
    entry = cache_folder() / "reference" / f"{ENTRY}.safetensors"
    entry.write_bytes(b"forged")
    code, out, err = run("verify")
    assert code == 4
    for path in (entry, unpacked):
        assert f"void: {path}: is not as you wrote it here\n" in out
    assert f"1 item in {cache_folder()} as you wrote them\n" in out
    assert err.startswith(f"cgconvert: {cache_folder()}: 2 items void: not used, and made again")
    assert err.count("\n") == 1


def test_clear_removes_all_that_is_cgconverts(run: Run, unpacked: Path) -> None:
    (unpacked / ".cgconvert-archive.json").write_text("{}")  # of an older version
    code, out, err = run("clear")
    assert (code, err) == (0, "")
    assert out.startswith("removed 4 items, ")
    assert not cache_folder().exists()


FOREIGN: dict[str, str] = {
    "another folder": "notes/a.txt",
    "a file beside the kinds": "a.txt",
    "a file among entries": "reference/a.txt",
    "a folder among entries": f"reference/{'1' * 64}/a.txt",
    "a folder among unpacked ones": "unpacked/mine/config.json",
    "another file in an unpacked folder": f"unpacked/codegen-{'1' * 16}/notes.txt",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_clear_leaves_all_else(kind: str, run: Run, unpacked: Path) -> None:
    foreign = cache_folder() / FOREIGN[kind]
    foreign.parent.mkdir(parents=True, exist_ok=True)
    foreign.write_text("mine")
    code, out, _ = run("clear")
    assert (code, out.count("left alone: ")) == (0, 1)
    assert "removed 4 items" in out
    assert [path for path in cache_folder().rglob("*") if path.is_file()] == [foreign]


def test_clear_follows_no_link(run: Run, unpacked: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    link = unpacked.with_name(f"linked-{'1' * 16}")
    link.symlink_to(tmp_path / "mine")
    entry = cache_folder() / "reference" / ("1" * 64)
    entry.symlink_to(tmp_path / "mine" / "config.json")
    code, out, _ = run("clear")
    assert (code, out.count("left alone: ")) == (0, 2)
    assert link.is_symlink()
    assert entry.is_symlink()
    assert (tmp_path / "mine" / "config.json").is_file()


def test_the_api_lists_the_same(unpacked: Path) -> None:
    items = cgconvert.cached(check=True)
    assert [(item.kind, item.is_own) for item in items] == [
        ("reference", True), ("reference", True), ("archives", True), ("unpacked", True),
    ]  # fmt: skip
    assert [bool(item.fault) for item in items] == [True, False, False, False]
    assert cgconvert.cached(delete=True)
    assert cgconvert.cached() == []


def test_the_actions_are_completed_and_checked(run: Run) -> None:
    code, _, err = run("remove")
    assert code == 2
    assert "is not one of 'list', 'verify', 'clear'" in err
