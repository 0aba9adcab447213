"""Whatever appears at an output during a run stays, at whatever moment it appears or the run dies.

Every step of a run that touches names is a moment: before each of them in turn, another program
makes or changes something at the output or beside it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cgconvert.errors import CgconvertError
from cgconvert.formats.read import read
from cgconvert.io import commit, staging
from cgconvert.io.system import names
from cgconvert.write.execute import execute
from cgconvert.write.ownership import Replacement
from cgconvert.write.plan import FilePlan, Plan

FILE, FOLDER = "m.gguf", "model"
MANIFEST = f"{FILE}.cgconvert.json"

STEPS = (
    (commit, "rename"), (commit, "rename_new"), (commit, "exchange"), (commit, "sync"),
    (staging, "sync"), (staging, "_sync_tree"), (Replacement, "check"), (Replacement, "is_own"),
    (Path, "unlink"), (Path, "replace"), (Path, "mkdir"), (Path, "rmdir"), (Path, "hardlink_to"),
    (shutil, "rmtree"), (names, "_renamed"),
)  # fmt: skip
"""The functions before which something may happen."""


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the disk: no power fails here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three artefacts of each kind, which differ in their weights."""
    folder = tmp_path_factory.mktemp("artefacts")
    for name in ("earlier", "new", "other"):
        text = f"{name} weights".encode()
        files = (FilePlan("weights.bin", text), FilePlan("deep/note.txt", b"hello"))
        source = read("codegen-tiny-mono")
        execute(Plan(source, folder / name / FOLDER, True, "huggingface", "F32", files))
        execute(Plan(source, folder / name / FILE, False, "gguf", "F32", (FilePlan(FILE, text),)))
    return folder


def write(artefact: Path, place: Path, *, force: bool = False) -> str:
    """Commit a copy of an artefact to a folder, as a run does; return why that is refused."""
    is_folder = artefact.is_dir()
    try:
        guard = Replacement(force=force, is_folder=is_folder)
        with staging.Staging(place / artefact.name, guard) as output:
            if is_folder:
                shutil.copytree(artefact, output.content, dirs_exist_ok=True)
                output.commit_folder()
            else:
                for name in (FILE, MANIFEST):
                    shutil.copy(artefact.with_name(name), output.content)
                output.commit_files()
    except CgconvertError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def before_step(number: int, action: Callable[[], object]) -> Iterator[list[int]]:
    """Have `action` happen before the step with this number; yield a list of the steps so far.

    Steps of a step count too; those of the action do not.
    """
    steps: list[int] = []
    is_acting = False

    def counting(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            nonlocal is_acting
            if not is_acting:
                steps.append(len(steps))
                if len(steps) == number + 1:
                    is_acting = True
                    action()
                    is_acting = False
            return function(*arguments, **options)

        return call

    originals = [(owner, name, getattr(owner, name)) for owner, name in STEPS]
    for owner, name, function in originals:
        setattr(owner, name, counting(function))
    try:
        yield steps
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)


def in_folder(place: Path) -> None:
    """Write a file into the folder of the output, which is made if it is missing."""
    (place / FOLDER).mkdir(exist_ok=True)
    (place / FOLDER / "thesis.tex").write_text("years")


def instead_of(name: str) -> Callable[[Path], None]:
    """Put a file in the place of whatever has a name, as an editor does that saves."""

    def make(place: Path) -> None:
        (place / "saved").write_text("years")
        if (place / name).is_dir():
            (place / name).rename(place / "moved")
        (place / "saved").replace(place / name)

    return make


def put_artefact(place: Path) -> None:
    """Put another artefact of cgconvert's, with its manifest, in the place of the output."""
    for path in sorted((place.parent / "other").iterdir()):
        if os.path.lexists(place / path.name):
            (place / path.name).rename(place / f"moved {path.name}")
        path.rename(place / path.name)


HAPPENINGS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a file in the folder": (FOLDER, in_folder, f"{FOLDER}/thesis.tex"),
    "a file instead of the folder": (FOLDER, instead_of(FOLDER), FOLDER),
    "another artefact, a folder": (FOLDER, put_artefact, f"{FOLDER}/weights.bin"),
    "a file": (FILE, instead_of(FILE), FILE),
    "a manifest": (FILE, instead_of(MANIFEST), MANIFEST),
    "another artefact, a file": (FILE, put_artefact, FILE),
}
"""The output, what happens at it, and the file that must survive with one of TEXTS in it."""

LATER = (1, 4)
"""How many steps after it a run is killed."""

TEXTS = (b"years", b"other weights")
"""What survives."""


def copy_kind(artefact: Path, output: str, folder: Path) -> None:
    """Copy an artefact, a folder or a file with its manifest, to a new folder."""
    folder.mkdir(parents=True)
    if output == FOLDER:
        shutil.copytree(artefact / FOLDER, folder / FOLDER)
    else:
        for name in (FILE, MANIFEST):
            shutil.copy(artefact / name, folder)


@pytest.mark.parametrize("system", ["renameat2", "without it"])
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", HAPPENINGS)
def test_what_happens_at_any_moment_is_not_undone(
    name: str, force: bool, system: str, artefacts: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Without `force` nothing was there before; with it, an earlier artefact is replaced."""
    output, happen, survivor = HAPPENINGS[name]
    if system == "without it":
        monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
    endings = set()
    for number in itertools.count():
        place = tmp_path / str(number) / "place"
        copy_kind(artefacts / "other", output, place.with_name("other"))
        place.mkdir()
        if force:
            copy_kind(artefacts / "earlier", output, place / "earlier")
            for path in (place / "earlier").iterdir():
                path.rename(place / path.name)
        with before_step(number, lambda place=place: happen(place)) as steps:  # type: ignore[misc]
            message = write(artefacts / "new" / output, place, force=force)
        endings.add("refused" if message else "written")
        assert "\n" not in message
        if len(steps) <= number:
            break
        kept = list(place.glob(".*"))
        if kept:  # what cannot go back, because something lies there by now
            assert f"is in the way of what lies in {kept[0]}/replaced/" in message, number
        if "artefact" in name and force:  # which may be replaced like the earlier one
            assert (place / survivor).read_bytes() in (*TEXTS, b"new weights"), (number, message)
        else:
            assert (place / survivor).read_bytes() in TEXTS, (number, message)
    assert number > 10
    assert endings >= ({"written"} if "artefact" in name and force else {"written", "refused"})


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", [name for name in HAPPENINGS if "artefact" not in name])
def test_a_kill_after_what_happens_loses_nothing(
    name: str, force: bool, artefacts: Path, tmp_path: Path
) -> None:
    """The run dies some steps later; a run after it, or its refusal, leaves what has happened."""
    output, happen, survivor = HAPPENINGS[name]
    for attempt in itertools.count():
        number, later = attempt, LATER[attempt % len(LATER)]
        place = tmp_path / f"{number}-{later}"
        place.mkdir()
        if force:
            copy_kind(artefacts / "earlier", output, place / "earlier")
            for path in (place / "earlier").iterdir():
                path.rename(place / path.name)
        child = os.fork()
        if child == 0:
            code = 2
            try:
                with (
                    before_step(number + later, lambda: os.kill(os.getpid(), signal.SIGKILL)),
                    before_step(number, lambda place=place: happen(place)) as steps,  # type: ignore[misc]
                ):
                    write(artefacts / "new" / output, place, force=force)
                code = len(steps) <= number
            finally:
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 1:
            break
        assert status in (0, -signal.SIGKILL)
        message = write(artefacts / "new" / output, place)
        if (place / survivor).is_file():
            assert (place / survivor).read_bytes() in TEXTS, (number, later, message)
        else:  # only if it says where it is
            path = next(place.rglob(f".*/replaced/{survivor}"))
            assert path.read_bytes() in TEXTS, (number, later)
            assert f"is in the way of what lies in {path}" in message, (number, later)
    assert number > 10
