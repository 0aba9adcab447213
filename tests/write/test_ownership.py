"""What `force` may replace: cgconvert's own artefacts, unchanged, and nothing else, ever."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from cgconvert.cli.main import main
from cgconvert.errors import CgconvertError, OutputError, UsageError
from cgconvert.formats.read import read
from cgconvert.io import commit, staging
from cgconvert.io.staging import staging_folder
from cgconvert.model.decoder import Checkpoint
from cgconvert.write.execute import execute
from cgconvert.write.manifest import MANIFEST_NAME
from cgconvert.write.plan import FilePlan, Plan

FOLDER_FILES = (FilePlan("deep/data.bin", b"weights" * 100), FilePlan("note.txt", b"hello"))
MODEL = "m.gguf"

State = dict[str, tuple[str, str]]


@pytest.fixture
def checkpoint(make_checkpoint: Callable[..., Path]) -> Checkpoint:
    return read(str(make_checkpoint()))


def folder_plan(checkpoint: Checkpoint, output: Path, text: bytes = b"hello") -> Plan:
    files = (FOLDER_FILES[0], FilePlan("note.txt", text))
    return Plan(checkpoint, output, True, "huggingface", "F32", files)


def file_plan(checkpoint: Checkpoint, output: Path, text: bytes = b"GGUF") -> Plan:
    files = (FilePlan(output.name, text),)
    return Plan(checkpoint, output, False, "gguf", "F16", files)


def state(folder: Path) -> State:
    """Kind and content of everything below a folder, links not followed."""
    entries: State = {}
    for path in sorted(folder.rglob("*")):
        mode, name = path.lstat().st_mode, str(path.relative_to(folder))
        if stat.S_ISLNK(mode):
            entries[name] = ("link", str(path.readlink()))
        elif stat.S_ISREG(mode):
            entries[name] = ("file", hashlib.sha256(path.read_bytes()).hexdigest())
        else:
            entries[name] = (oct(stat.S_IFMT(mode)), "")
    return entries


def rewrite_manifest(path: Path, **changes: object) -> None:
    """Change fields of a manifest and give it the hash that it would have."""
    fields = json.loads(path.read_text()) | changes
    del fields["sha256"]
    body = (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode()
    fields["sha256"] = hashlib.sha256(body).hexdigest()
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n")


def fields_of(folder: Path) -> dict[str, dict[str, object]]:
    files: dict[str, dict[str, object]] = json.loads((folder / MANIFEST_NAME).read_text())["files"]
    return files


def name_outside(folder: Path) -> None:
    """A manifest that names files above the folder, instead of those in it."""
    (folder.parent / "thesis.tex").write_text("years")
    sha256 = hashlib.sha256(b"years").hexdigest()
    files = {"../thesis.tex": {"bytes": 5, "sha256": sha256}}
    rewrite_manifest(folder / MANIFEST_NAME, files=files)


def name_fewer(folder: Path) -> None:
    files = fields_of(folder)
    del files["note.txt"]
    rewrite_manifest(folder / MANIFEST_NAME, files=files)


def change_same_size(folder: Path) -> None:
    path = folder / "deep/data.bin"
    status = path.stat()
    path.write_bytes(b"WEIGHTS" * 100)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_by_link(folder: Path) -> None:
    (folder / "note.txt").rename(folder.parent / "note.txt")
    (folder / "note.txt").symlink_to("../note.txt")


def link_manifest(folder: Path) -> None:
    (folder / MANIFEST_NAME).rename(folder.parent / "kept.json")
    (folder / MANIFEST_NAME).symlink_to("../kept.json")


CHANGED_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file beside": (
        lambda folder: (folder / "thesis.tex").write_text("years"),
        "its manifest does not name thesis.tex",
    ),
    "many files beside": (
        lambda folder: [(folder / f"{name}.py").write_text("code") for name in "abcde"],
        "its manifest does not name a.py, b.py, c.py and 2 more",
    ),
    "another case": (
        lambda folder: (folder / "NOTE.TXT").write_text("mine"),
        "its manifest does not name NOTE.TXT",
    ),
    "a subfolder": (
        lambda folder: (folder / "mine").mkdir(),
        "its manifest does not name mine",
    ),
    "a file in a subfolder": (
        lambda folder: (folder / "deep/mine.py").write_text("code"),
        "its manifest does not name deep/mine.py",
    ),
    "a link beside": (
        lambda folder: (folder / "link").symlink_to("../elsewhere"),
        "its manifest does not name link",
    ),
    "a file that is a link now": (replace_by_link, "changed since it was written: note.txt"),
    "an edited file": (
        lambda folder: (folder / "note.txt").write_text("hello, and my notes"),
        "changed since it was written: note.txt",
    ),
    "other weights of the same size and time": (
        change_same_size,
        "changed since it was written: deep/data.bin",
    ),
    "an edited manifest": (
        lambda folder: (folder / MANIFEST_NAME).write_text(
            (folder / MANIFEST_NAME).read_text().replace("huggingface", "mine")
        ),
        "the cgconvert.json in it is not one that cgconvert wrote",
    ),
    "a foreign manifest": (
        lambda folder: (folder / MANIFEST_NAME).write_text('{"name": "my own tool"}'),
        "the cgconvert.json in it is not one that cgconvert wrote",
    ),
    "a manifest that is a link": (link_manifest, "there is no cgconvert.json in it"),
    "no manifest": (
        lambda folder: (folder / MANIFEST_NAME).unlink(),
        "there is no cgconvert.json in it",
    ),
    "a manifest that names files elsewhere": (name_outside, "its manifest does not name deep"),
    "a manifest that names fewer files": (name_fewer, "its manifest does not name note.txt"),
}


@pytest.mark.parametrize("name", CHANGED_FOLDERS)
def test_a_folder_with_anything_of_the_users_survives(
    name: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    change, reason = CHANGED_FOLDERS[name]
    place = tmp_path / "place"
    execute(folder_plan(checkpoint, place / "out"))
    change(place / "out")
    before = state(place)
    for force in (False, True):
        with pytest.raises(UsageError) as caught:
            execute(folder_plan(checkpoint, place / "out", b"newer"), force=force)
        assert reason in str(caught.value)
        assert "force" not in str(caught.value)
        assert state(place) == before


def manifest_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.{MANIFEST_NAME}")


def move_behind_link(path: Path) -> None:
    path.rename(path.with_name("kept"))
    path.symlink_to("kept")


def in_place_of(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Remove the file, then make something else in its place."""

    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


CHANGED_FILES: dict[str, Callable[[Path], object]] = {
    "no manifest": lambda path: manifest_of(path).unlink(),
    "an edited file": lambda path: path.write_bytes(b"GGUF mine"),
    "other bytes of the same size": lambda path: path.write_bytes(b"gguf"),
    "a foreign manifest": lambda path: manifest_of(path).write_text("{}"),
    "a link": move_behind_link,
    "a link that leads nowhere": in_place_of(lambda path: path.symlink_to("nowhere")),
    "a folder": in_place_of(Path.mkdir),
    "a pipe": in_place_of(lambda path: os.mkfifo(path)),
    "only a foreign manifest": in_place_of(lambda path: manifest_of(path).write_text("my notes")),
}


@pytest.mark.parametrize("name", CHANGED_FILES)
def test_a_file_of_the_users_survives(name: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    place = tmp_path / "place"
    execute(file_plan(checkpoint, place / MODEL))
    CHANGED_FILES[name](place / MODEL)
    before = state(place)
    with pytest.raises(UsageError, match="choose another `output`"):
        execute(file_plan(checkpoint, place / MODEL, b"newer"), force=True)
    assert state(place) == before


@pytest.mark.parametrize(
    "place", ["working folder", "its parent", "home", "home's parent", "mount"]
)
def test_places_that_are_never_replaced(
    place: str, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unchanged artefact survives too where people work, live or mount."""
    output = tmp_path / "place" / "out"
    execute(folder_plan(checkpoint, output))
    if place.endswith("parent"):
        (output / "below").mkdir()
    inner = output / "below" if place.endswith("parent") else output
    if place == "mount":
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == output)
    elif "home" in place:
        monkeypatch.setenv("HOME", str(inner))
    else:
        monkeypatch.chdir(inner)
    before = state(tmp_path / "place")
    with pytest.raises(UsageError, match=r"is (the working|your home) folder|is a mount point"):
        execute(folder_plan(checkpoint, output, b"newer"), force=True)
    assert state(tmp_path / "place") == before


def test_links_that_lead_to_an_artefact_survive(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A link is refused; a hard link keeps its bytes; a linked parent is used."""
    place = tmp_path / "place"
    execute(folder_plan(checkpoint, place / "out"))
    execute(file_plan(checkpoint, place / MODEL))
    (place / "link").symlink_to("out")
    (place / "mine.gguf").hardlink_to(place / MODEL)
    before = state(place)
    with pytest.raises(UsageError, match=r"link: is a link \(to out\)"):
        execute(folder_plan(checkpoint, place / "link", b"newer"), force=True)
    assert state(place) == before
    execute(file_plan(checkpoint, place / MODEL, b"newer"), force=True)
    assert ((place / MODEL).read_bytes(), (place / "mine.gguf").read_bytes()) == (b"newer", b"GGUF")
    (tmp_path / "linked").symlink_to("place")
    execute(folder_plan(checkpoint, tmp_path / "linked" / "out", b"newer"), force=True)
    assert (place / "out" / "note.txt").read_bytes() == b"newer"
    assert (tmp_path / "linked").is_symlink()


def test_the_source_under_another_name_is_still_the_source(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """A second mount or another case of the letters gives such names too."""
    link = tmp_path / "place" / MODEL
    link.parent.mkdir()
    link.hardlink_to(checkpoint.files[0])
    before = state(link.parent)
    with pytest.raises(UsageError, match="the output is the input"):
        execute(file_plan(checkpoint, link), force=True)
    assert state(link.parent) == before


def test_what_the_systems_leave_and_what_is_missing_does_not_count(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    execute(folder_plan(checkpoint, output))
    (output / ".DS_Store").write_bytes(b"finder")
    (output / "note.txt").unlink()
    execute(folder_plan(checkpoint, output, b"newer"), force=True)
    assert (output / "note.txt").read_bytes() == b"newer"
    assert not (output / ".DS_Store").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    execute(folder_plan(checkpoint, empty), force=True)
    assert (empty / "note.txt").exists()


COMMANDS = {
    "to-hf": ("to-hf",),
    "to-onnx": ("to-onnx",),
    "to-gguf": ("to-gguf",),
    "quantize gguf": ("quantize", "--bits", "4"),
    "quantize onnx": ("quantize", "--bits", "4", "--format", "onnx"),
}


@pytest.mark.parametrize("as_recipe", [False, True])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_recipe_spares_what_is_not_cgconverts(
    name: str,
    as_recipe: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command, *options = COMMANDS[name]
    is_file = "gguf" in name
    output = tmp_path / ("precious.gguf" if is_file else "precious")
    kept = output if is_file else output / "thesis.tex"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("years of work")
    monkeypatch.chdir(tmp_path)
    arguments = [command, "codegen-tiny-mono", *options, "-o", output.name, "--force"]
    if as_recipe:
        values = dict(zip(options[::2], options[1::2], strict=True)) | {"output": output.name}
        step = ", ".join(f"{key.strip('-')}: {value}" for key, value in values.items())
        (tmp_path / "r.yaml").write_text(
            f"source: codegen-tiny-mono\nsteps:\n  - {command}: {{{step}}}\n"
        )
        arguments = ["run", "r.yaml", "--force"]
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    message = capsys.readouterr().err
    assert leaving.value.code == 2, message
    assert "there is no cgconvert.json" in message
    assert "--force" not in message
    assert kept.read_text() == "years of work"
    assert not [path for path in os.listdir(tmp_path) if path.startswith(".")]


# What changes while a run is under way


def interfering(
    monkeypatch: pytest.MonkeyPatch, where: object, name: str, action: Callable[[], object]
) -> None:
    """Have `action` happen once, before a function of a module is called."""
    original, pending = getattr(where, name), [action]

    def call(*arguments: object, **options: object) -> object:
        while pending:
            pending.pop()()
        return original(*arguments, **options)

    monkeypatch.setattr(where, name, call)


@pytest.mark.parametrize("moment", ["before the last look", "after the last look"])
@pytest.mark.parametrize("force", [False, True])
def test_what_appears_at_the_output_during_a_run_survives(
    force: bool,
    moment: str,
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A user writes to the output while cgconvert does: before the commit looks, or after it."""
    place = tmp_path / "place"
    output = place / "out"
    if force:
        execute(folder_plan(checkpoint, output))

    def write() -> None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "thesis.tex").write_text("years")

    if moment.startswith("before"):
        interfering(monkeypatch, staging, "_sync_tree", write)
    else:
        interfering(monkeypatch, commit, "exchange" if force else "rename_new", write)
    with pytest.raises(OutputError):
        execute(folder_plan(checkpoint, output, b"newer"), force=force)
    assert (output / "thesis.tex").read_text() == "years"
    if force:
        assert (output / "note.txt").read_bytes() == b"hello"
    shutil.rmtree(output)
    assert not staging_folder(output).exists()


def test_a_file_that_appears_during_a_run_survives(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "place" / MODEL
    interfering(monkeypatch, commit, "rename_new", lambda: output.write_text("mine"))
    with pytest.raises(CgconvertError):
        execute(file_plan(checkpoint, output))
    assert output.read_text() == "mine"
    assert os.listdir(output.parent) == [MODEL]
