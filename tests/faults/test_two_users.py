"""Another user prepares what lies beside an output, or changes it meanwhile, and gets nothing."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.kill import file_hashes
from tests.faults.server import Server
from tests.support.two_users import (
    AS_NOBODY,
    NOBODY,
    REPOSITORY,
    ROOT,
    background_as_nobody,
    call_as_nobody,
    make_shared_folder,
)

CONVERSION = ("to-gguf", "codegen-tiny-mono", "-o", "m.gguf")
STAGING = ".m.gguf.cgconvert-tmp"
SECONDS = 10
"""No command may take so long: nothing of another user's is waited for."""


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file of root's in a folder that nobody cannot reach. It is empty, as some are."""
    path = tmp_path / "precious"
    path.touch()
    return path


def make_folder(folder: Path, precious: Path) -> None:
    folder.mkdir(mode=0o777)


def make_staging(folder: Path, precious: Path) -> None:
    """All that a staging folder has, with links to follow."""
    (folder / "content").mkdir(parents=True)
    for name in ("lock", "journal", "commit", "content/m.gguf"):
        (folder / name).symlink_to(precious)


def hold_lock(folder: Path, precious: Path) -> None:
    folder.mkdir()
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        time.sleep(3600)


PREPARED: dict[str, Callable[[Path, Path], object]] = {
    "an empty folder": make_folder,
    "a staging folder with links": make_staging,
    "a lock that is held": hold_lock,
    "a link to a file": lambda folder, precious: folder.symlink_to(precious),
    "a link to a folder": lambda folder, precious: folder.symlink_to(precious.parent),
    "a dead link": lambda folder, precious: folder.symlink_to(precious.parent / "made"),
    "a pipe": lambda folder, precious: os.mkfifo(folder),
    "a file": lambda folder, precious: folder.write_text("x"),
}
"""What nobody makes where a staging folder has to be."""


@pytest.mark.parametrize("name", PREPARED)
def test_a_staging_folder_of_another_user_is_refused(
    name: str, shared_folder: Path, precious: Path, server: Server
) -> None:
    with background_as_nobody(PREPARED[name], shared_folder / STAGING, precious):
        wait_for(shared_folder / STAGING)
        outcome = server.run(*CONVERSION, cwd=shared_folder)
        assert outcome.code == 2, outcome.err
        assert "move it away or choose another -o" in outcome.err
        assert outcome.err.count("\n") == 1
        assert outcome.wall < SECONDS
    assert os.listdir(shared_folder) == [STAGING]
    assert os.listdir(precious.parent) == ["precious"]
    assert precious.read_bytes() == b""


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not os.path.lexists(path) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)  # until it is filled


@pytest.mark.parametrize("target", ["precious", "made"])
def test_links_at_the_places_of_small_files_are_not_followed(
    target: str, shared_folder: Path, precious: Path, server: Server
) -> None:
    """A report, a manifest, an output, and the folders that lead to them."""
    for name in ("report.json", "report.html", "m.gguf.cgconvert.json", "n.gguf"):
        call_as_nobody((shared_folder / name).symlink_to, precious.with_name(target))
    call_as_nobody((shared_folder / "folder").symlink_to, precious.parent)
    before = os.listdir(precious.parent)
    artefact = precious.parent / "artefact.gguf"
    assert server.run(*CONVERSION[:3], str(artefact), cwd=shared_folder).code == 0
    after = sorted(os.listdir(precious.parent))
    commands = [
        ("verify", str(artefact), "--report", "report.json"),
        ("verify", str(artefact), "--report", "report.html"),
        ("verify", str(artefact), "--report", "folder/r.json"),
        CONVERSION,
        (*CONVERSION[:3], "n.gguf"),
        (*CONVERSION[:3], "n.gguf", "--force"),
        (*CONVERSION[:3], "folder/o.gguf"),
    ]
    for command in commands:
        outcome = server.run(*command, cwd=shared_folder)
        assert outcome.code in (2, 5), (command, outcome.err)
        assert outcome.err.count("\n") == 1, outcome.err
    assert sorted(os.listdir(precious.parent)) == after
    assert precious.read_bytes() == b""
    assert before == ["precious"]


def test_links_of_a_group_are_not_followed(
    shared_folder: Path, precious: Path, server: Server
) -> None:
    """Others than the owner of the folder can write in it, because they are of its group."""
    folder = shared_folder / "groups"
    folder.mkdir()
    os.chown(folder, ROOT, NOBODY)
    folder.chmod(0o775)
    call_as_nobody((folder / "link").symlink_to, precious.parent)
    for output in ("link/m.gguf", "link/deep/m.gguf"):
        outcome = server.run(*CONVERSION[:3], output, cwd=folder)
        assert outcome.code == 2, outcome.err
        assert "another user has put into a folder that others can write" in outcome.err
    assert os.listdir(precious.parent) == ["precious"]


def test_a_user_without_a_home() -> None:
    """Every command works where neither HOME nor the list of users names a home folder."""
    prefix = [argument.replace(str(NOBODY), "54321") for argument in AS_NOBODY]
    homes = ("HOME", "CGCONVERT_CACHE", "XDG_CACHE_HOME", "HF_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in homes}
    environment |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    with make_shared_folder(sticky=True) as folder:
        for arguments, code in (
            (CONVERSION, 0), ((*CONVERSION, "--force"), 0),
            (("inspect", "~nobody-of-this-name/m"), 3), (("cache",), 5),
        ):  # fmt: skip
            result = subprocess.run(
                [*prefix, sys.executable, "-Bm", "cgconvert", *arguments],
                cwd=folder, env=environment, text=True, capture_output=True, check=False,
            )  # fmt: skip
            assert result.returncode == code, (arguments, result.stderr)
            assert result.stderr.count("\n") <= 1


def test_an_artefact_of_another_user_is_not_replaced(
    shared_folder: Path, server: Server, tmp_path: Path
) -> None:
    """Its manifest is right in every byte, but who made it is not the user."""
    for command, output in (("to-gguf", "m.gguf"), ("to-hf", "hf")):
        made = tmp_path / "made" / output
        assert server.run(command, "codegen-tiny-mono", "-o", str(made), cwd=tmp_path).code == 0
    for path in (tmp_path / "made").iterdir():
        target = shared_folder / path.name
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, target)
        for part in (target, *target.rglob("*")):
            os.chown(part, NOBODY, NOBODY)
    before = file_hashes(shared_folder)
    for command, output in (("to-gguf", "m.gguf"), ("to-hf", "hf")):
        arguments = (command, "codegen-tiny-mono", "-o", output, "--force")
        outcome = server.run(*arguments, cwd=shared_folder)
        assert outcome.code == 2
        assert "belongs to another user" in outcome.err
    (shared_folder / "m.gguf").unlink()  # its manifest stays
    before.pop("m.gguf")
    assert server.run(*CONVERSION, cwd=shared_folder).code == 2
    assert file_hashes(shared_folder) == before


def exchange_names(folder: Path, precious: Path) -> None:
    """Put links, folders and files in the place of whatever appears, as fast as it goes."""
    (folder / "evil").mkdir(mode=0o777)
    for number in itertools.count():
        for name in os.listdir(folder):
            if name.startswith(("evil", "taken")):
                continue
            try:
                (folder / name).rename(folder / f"taken-{number}-{name}")
                if number % 3 == 0:
                    (folder / name).symlink_to(precious.parent)
                elif number % 3 == 1:
                    (folder / name).symlink_to(folder / "evil")
                else:
                    (folder / name).mkdir(mode=0o777)
            except OSError:
                continue


@pytest.mark.parametrize("seconds", [float(os.environ.get("CGCONVERT_TEST_RACE_SECONDS", "3"))])
def test_races_over_every_name_gain_nothing(
    seconds: float, shared_folder: Path, precious: Path, server: Server
) -> None:
    """Whatever the outcome, no file elsewhere changes, and what root made is root's alone."""
    commands = (("to-gguf", "m.gguf"), ("to-hf", "hf"), ("to-hf", "below/deep/hf"))
    with background_as_nobody(exchange_names, shared_folder, precious):
        wait_for(shared_folder / "evil")
        deadline = time.monotonic() + seconds
        for command, output in itertools.cycle(commands):
            if time.monotonic() > deadline:
                break
            arguments = (command, "codegen-tiny-mono", "-o", output)
            outcome = server.run(*arguments, cwd=shared_folder)
            assert outcome.code in (0, 2, 3, 5), outcome.err
            assert outcome.wall < SECONDS
    assert os.listdir(precious.parent) == ["precious"]
    assert precious.read_bytes() == b""
    assert not [path for path in (shared_folder / "evil").iterdir() if path.lstat().st_uid == ROOT]
    for path in shared_folder.rglob("*"):
        status = path.lstat()
        if status.st_uid == ROOT and not path.is_symlink():
            assert not status.st_mode & 0o022, path
            if path.is_dir():
                assert all(part.lstat().st_uid == ROOT for part in path.iterdir()), path
