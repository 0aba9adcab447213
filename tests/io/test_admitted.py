"""The private folder of admitted files: what it holds, and what becomes of it when files change."""

from __future__ import annotations

import errno
import gc
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cgconvert.errors import InputError
from cgconvert.io import admitted
from cgconvert.io.admitted import AdmittedFiles, UnchangedFiles, admitting
from cgconvert.io.system import open_file_links

BEFORE, AFTER = b"weights that were checked", b"other weights, of a stranger"


def refuse(*_: object) -> None:
    raise OSError(errno.EPERM, "a required privilege is not held by the client")


@pytest.fixture(params=["descriptor", "name", "copy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A way of linking: that of Linux, one without open files in /proc, and one without links."""
    if request.param != "descriptor":
        monkeypatch.setattr(open_file_links, "PROCESSES", Path("nowhere"))
    if request.param == "copy":
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    return str(request.param)


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    folder = tmp_path / "artefact"
    (folder / "onnx").mkdir(parents=True)
    (folder / "onnx" / "weights").write_bytes(BEFORE)
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "beside.bin").write_bytes(b"never admitted")
    return folder


def open_files() -> set[str]:
    return {os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")}


def admit(artefact: Path) -> AdmittedFiles:
    with admitting(artefact, artefact) as files:
        files.link("onnx/weights")
        files.copy("config.json")
    return files


def replace(path: Path) -> None:
    other = path.with_name("new")
    other.write_bytes(AFTER)
    other.replace(path)


def rewrite(path: Path) -> None:
    """Write into the file itself, and set its time back."""
    status = path.stat()
    path.write_bytes(AFTER[: status.st_size])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_private_folder_has_the_admitted_files_and_is_closed_to_others(
    artefact: Path, way: str
) -> None:
    files = admit(artefact)
    assert stat.S_IMODE(files.folder.stat().st_mode) == 0o700
    paths = {path.relative_to(files.folder).as_posix() for path in files.folder.rglob("*")}
    assert paths == {"config.json", "onnx", "onnx/weights"}
    assert files.files == {name: artefact / name for name in ("onnx/weights", "config.json")}
    link = files.folder / "onnx/weights"
    assert link.read_bytes() == BEFORE
    assert link.is_symlink() == (way == "descriptor")
    assert artefact.joinpath("onnx/weights").stat().st_nlink == (2 if way == "name" else 1)
    files.check_unchanged()
    files.close()
    files.close()
    assert not files.folder.exists()
    assert artefact.joinpath("onnx/weights").read_bytes() == BEFORE
    assert str(artefact / "onnx" / "weights") not in open_files()


def test_what_is_exchanged_after_the_check_does_not_reach_the_runtime(
    artefact: Path, way: str
) -> None:
    files = admit(artefact)
    for name in files.files:
        replace(artefact / name)
    assert (files.folder / "onnx/weights").read_bytes() == BEFORE
    assert (files.folder / "config.json").read_text() == '{"a": 1}'
    with pytest.raises(InputError, match=r"weights: was changed or replaced while it was in use"):
        files.check_unchanged()
    files.close()


@pytest.mark.parametrize(
    ("name", "change"),
    [("onnx/weights", rewrite), ("config.json", rewrite), ("config.json", replace),
     ("onnx/weights", Path.unlink)],
)  # fmt: skip
def test_a_change_is_noticed(name: str, change: Callable[[Path], object], artefact: Path) -> None:
    files, unchanged = admit(artefact), UnchangedFiles([artefact / name])
    change(artefact / name)
    for check in (files.check_unchanged, unchanged.check):
        with pytest.raises(InputError, match=f"^{artefact / name}: was changed"):
            check()
    files.close()


def test_a_file_with_a_second_name_is_watched_by_its_content(
    artefact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run makes and removes second names of its own meanwhile."""
    monkeypatch.setattr(open_file_links, "PROCESSES", Path("nowhere"))
    files = admit(artefact)
    admit(artefact).close()
    files.check_unchanged()
    (artefact / "onnx" / "weights").write_bytes(AFTER)
    with pytest.raises(InputError, match="was changed"):
        files.check_unchanged()
    files.close()


def test_a_second_name_of_ours_is_no_change(
    artefact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_file_links, "PROCESSES", Path("nowhere"))
    path = next(path for path in artefact.iterdir() if path.is_file())
    unchanged, files = UnchangedFiles([path]), AdmittedFiles(artefact, artefact)
    files.link(path.name)
    unchanged.check()
    files.close()
    unchanged.check()
    path.write_bytes(AFTER)
    with pytest.raises(InputError, match="was changed or replaced"):
        unchanged.check()


def test_another_process_of_the_user_reads_the_file_that_was_checked(
    artefact: Path, way: str
) -> None:
    files = admit(artefact)
    replace(artefact / "onnx" / "weights")
    code = "import sys; sys.stdout.buffer.write(open(sys.argv[1], 'rb').read())"
    command = [sys.executable, "-c", code, str(files.folder / "onnx" / "weights")]
    assert subprocess.run(command, check=True, capture_output=True).stdout == BEFORE
    files.close()


def test_more_files_than_may_be_open_are_admitted(
    artefact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admitted, "MOST_OPEN", 2)
    for number in range(4):
        (artefact / str(number)).write_bytes(b"%d" % number)
    with admitting(artefact, artefact) as files:
        for number in range(4):
            files.link(str(number))
    held = open_files() & {str(artefact / str(number)) for number in range(4)}
    assert held == {str(artefact / str(number)) for number in range(2)}
    assert [(files.folder / str(n)).read_text() for n in range(4)] == ["0", "1", "2", "3"]
    files.close()


def test_only_regular_files_that_are_there_are_admitted(artefact: Path) -> None:
    os.mkfifo(artefact / "pipe")
    (artefact / "dangling").symlink_to("nowhere")
    for name in ("pipe", "dangling", "missing", "onnx", "a\0b"):
        for method in (AdmittedFiles.link, AdmittedFiles.copy):
            with (
                pytest.raises(InputError, match="cannot be read"),
                admitting(artefact, artefact) as files,
            ):
                method(files, name)
            assert not files.folder.exists()


def test_a_folder_that_nobody_closed_is_removed(artefact: Path) -> None:
    files = admit(artefact)
    folder = files.folder
    del files
    gc.collect()
    assert not folder.exists()


def test_errors_name_the_files_of_the_artefact(artefact: Path) -> None:
    files = admit(artefact)
    for text, expected in (
        (f"{files.folder}/onnx/weights: broken", f"{artefact}/onnx/weights: broken"),
        (f"in '{files.folder}'", f"in '{artefact}'"),
        (f"cut at {str(files.folder)[:-3]}", f"cut at {artefact}"),
        ("nothing of it", "nothing of it"),
    ):
        with pytest.raises(InputError) as caught, files.naming_artefact():
            raise InputError(text)
        assert str(caught.value) == expected
    files.close()
