"""Interrupted work stays, is said, continued by the same plan, and found by `clean`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import cgconvert
from cgconvert.api.output_state import output_state
from cgconvert.cli.conversions import carry_out
from cgconvert.cli.main import main
from cgconvert.codecs.encoding import F32
from cgconvert.errors import InputError, Interrupted, OutputError, UsageError
from cgconvert.formats.read import read
from cgconvert.io.staging import staging_folder
from cgconvert.io.system.locks import FileLock
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.dtype import FLOAT32
from cgconvert.model.tensor import InMemoryTensor, LazyTensor
from cgconvert.write import plan as plans
from cgconvert.write import writer
from cgconvert.write.execute import execute
from cgconvert.write.leftovers import unfinished
from cgconvert.write.plan import FilePlan, Plan, lay_out

ROWS, COLUMNS = 1000, 100
VALUES = torch.arange(ROWS * COLUMNS, dtype=torch.float32).reshape(ROWS, COLUMNS)


class Stopping(LazyTensor):
    """A source that raises an error once `good` rows were read."""

    shape = (ROWS, COLUMNS)
    dtype = FLOAT32
    parents = ()

    def __init__(self, good: int, error: BaseException | None) -> None:
        self.good, self.error = good, error
        self.rows_read: list[int] = []

    def read(self, rows: slice = slice(None), cols: slice = slice(None)) -> torch.Tensor:
        if self.error is not None and rows.start >= self.good:
            raise self.error
        self.rows_read.append(rows.start)
        return VALUES[rows, cols]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Chunks of ten rows, each recorded at once."""
    monkeypatch.setattr(plans, "CHUNK_BYTES", 10 * COLUMNS * 4)
    monkeypatch.setattr(writer, "JOURNAL_BYTES", 1)
    monkeypatch.setattr(writer, "IN_FLIGHT_BYTES", 1)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def checkpoint(make_checkpoint: Callable[..., Path]) -> Checkpoint:
    return read(str(make_checkpoint()))


def planned(checkpoint: Checkpoint, tensor: LazyTensor, name: str = "m.bin") -> Plan:
    tensors = lay_out([("a", tensor, F32)])
    return Plan(checkpoint, Path(name), False, "gguf", "F32", (FilePlan(name, b"", tensors),))


STOPS: dict[str, BaseException] = {
    "Ctrl-C": KeyboardInterrupt(),
    "a signal": Interrupted(),
    "a full disk": OSError(28, "No space left on device"),
    "no memory": MemoryError(),
    "a bug": RuntimeError("a bug"),
}


@pytest.mark.parametrize("name", STOPS)
def test_what_was_written_stays_and_the_same_plan_goes_on(
    name: str, checkpoint: Checkpoint
) -> None:
    """The line says how much, where, and what to do; the next run writes only what is missing."""
    error = STOPS[name]
    with pytest.raises((type(error), OutputError)) as caught:
        execute(planned(checkpoint, Stopping(500, error)))
    line = "; ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    percent = int(line.partition("kept ")[2].partition(" %")[0])
    assert 1 <= percent <= 50  # rows are recorded in the background
    assert " in .m.bin.cgconvert-tmp): run the same again to go on, " in line
    assert "or drop it with `cgconvert clean m.bin --delete`" in line
    assert os.listdir() == [".m.bin.cgconvert-tmp"]
    tensor = Stopping(0, None)
    plan = planned(checkpoint, tensor)
    assert unfinished(plan).continues == f"{percent} %"
    assert output_state(plan).kind == "absent"
    execute(plan)
    assert min(tensor.rows_read) == percent * 10
    assert Path("m.bin").read_bytes() == VALUES.numpy().tobytes()
    assert sorted(os.listdir()) == ["m.bin", "m.bin.cgconvert.json"]


@pytest.mark.parametrize(
    ("good", "error", "keep"),
    [
        (500, InputError("broken"), True),
        (0, KeyboardInterrupt(), True),
        (500, Interrupted(), False),
    ],
)
def test_nothing_stays_of_bad_input_of_nothing_written_and_without_keep(
    good: int, error: BaseException, keep: bool, checkpoint: Checkpoint
) -> None:
    with pytest.raises(type(error)) as caught:
        execute(planned(checkpoint, Stopping(good, error)), keep=keep)
    assert not getattr(caught.value, "__notes__", [])
    assert os.listdir() == []


def stopped(checkpoint: Checkpoint, name: str = "m.bin") -> Path:
    with pytest.raises(KeyboardInterrupt):
        execute(planned(checkpoint, Stopping(500, KeyboardInterrupt()), name))
    return staging_folder(Path(name))


def test_without_keep_what_is_left_is_dropped(checkpoint: Checkpoint) -> None:
    stopped(checkpoint)
    tensor = Stopping(0, None)
    execute(planned(checkpoint, tensor), keep=False)
    assert min(tensor.rows_read) == 0


def test_another_plan_says_what_it_drops(checkpoint: Checkpoint) -> None:
    stopped(checkpoint)
    other = planned(checkpoint, InMemoryTensor(VALUES.double()))
    left = unfinished(other)
    assert left.continues == ""
    assert left.drops.endswith(" %")
    execute(other)
    assert Path("m.bin").read_bytes() == VALUES.numpy().tobytes()


def test_a_refused_run_keeps_what_an_interrupted_one_has_left(checkpoint: Checkpoint) -> None:
    staging = stopped(checkpoint)
    Path("m.bin").write_text("mine")
    with pytest.raises(cgconvert.UsageError, match=r"m\.bin: exists and is not cgconvert's"):
        execute(planned(checkpoint, Stopping(0, None)))
    assert staging.is_dir()
    Path("m.bin").unlink()
    assert unfinished(planned(checkpoint, Stopping(0, None))).continues


def test_a_dry_run_says_what_would_be_continued_or_stop(
    checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    carry_out(planned(checkpoint, Stopping(0, None)), dry_run=True)
    assert capsys.readouterr().err == ""
    stopped(checkpoint)
    for options, start in (({"dry_run": True}, "would continue at "), ({}, "continuing at ")):
        carry_out(planned(checkpoint, Stopping(0, None)), **options)  # type: ignore[arg-type]
        assert re.search(rf"^{start}\d+ %: m\.bin$", capsys.readouterr().err, re.MULTILINE)
    Path("precious.gguf").write_text("mine")
    for name, flags, line in (
        ("precious.gguf", ["--force"], "would stop: precious.gguf: exists and is not cgconvert's"),
        ("new.gguf", [], ""),
    ):
        with pytest.raises(SystemExit):
            main(["to-gguf", "codegen-tiny-mono", "-o", name, "--dry-run", *flags])
        stops = [text for text in capsys.readouterr().out.splitlines() if "would stop" in text]
        assert [stop[: len(line)] for stop in stops] == [line] * bool(line)


# clean


def test_clean_lists_and_removes_only_what_runs_have_left(
    checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("deep/er").mkdir(parents=True)
    for name in ("m.bin", "n.bin"):
        stopped(checkpoint, name)
    Path(".n.bin.cgconvert-tmp").rename("deep/er/.n.bin.cgconvert-tmp")
    Path("deep/.verdict.json.cgconvert-tmp/content").mkdir(parents=True)
    Path("deep/.verdict.json.cgconvert-tmp/lock").touch()
    mine = {
        "deep/.mine.cgconvert-tmp/thesis.tex": "a folder with files that no staging folder has",
        "deep/.book.cgconvert-tmp/content/thesis.tex": "a folder without a lock",
        "deep/.half.tex.cgconvert-tmp": "a file",
        ".cgconvert-tmp/thesis.tex": "another name",
        "plain/.git/.x.cgconvert-tmp": "not searched",
        "plain/file.cgconvert-tmp": "not hidden",
    }
    for name, text in mine.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    Path(".link.cgconvert-tmp").symlink_to("plain")
    Path("linked").symlink_to("plain")
    leftovers = cgconvert.clean()
    assert [str(leftover.path) for leftover in leftovers] == [
        ".m.bin.cgconvert-tmp",
        "deep/.verdict.json.cgconvert-tmp",
        "deep/er/.n.bin.cgconvert-tmp",
    ]
    assert [str(leftover.output) for leftover in leftovers] == [
        "m.bin", "deep/verdict.json", "deep/er/n.bin",
    ]  # fmt: skip
    assert [bool(leftover.progress) for leftover in leftovers] == [True, False, True]
    assert leftovers[0].nbytes >= ROWS * COLUMNS * 4
    with pytest.raises(SystemExit):
        main(["clean"])
    listed = capsys.readouterr().out
    assert re.match(r"\.m\.bin\.cgconvert-tmp  4\d\d kB, \d s old, \d+ % of m\.bin\n", listed)
    assert listed.splitlines()[-1].endswith(
        "--delete removes it, the same command again continues it"
    )
    assert cgconvert.clean() == leftovers  # a list removes nothing
    with pytest.raises(SystemExit):
        main(["clean", "deep", "--delete"])
    assert capsys.readouterr().out.count("removed  deep/") == 2
    assert [str(leftover.path) for leftover in cgconvert.clean()] == [".m.bin.cgconvert-tmp"]
    assert len(cgconvert.clean("m.bin", delete=True)) == 1  # by the name of the output
    with pytest.raises(SystemExit):
        main(["clean", "--delete"])
    assert capsys.readouterr().out == "no interrupted run has left anything in .\n"
    assert {name: Path(name).read_text() for name in mine} == mine
    assert Path(".link.cgconvert-tmp").is_symlink()
    with pytest.raises(InputError, match="no such file or folder, and nothing was left for it"):
        cgconvert.clean("nosuch")


def test_clean_spares_a_running_run(checkpoint: Checkpoint) -> None:
    staging = stopped(checkpoint)
    lock = FileLock(staging / "lock")
    lock.acquire()
    assert [leftover.is_running for leftover in cgconvert.clean()] == [True]
    assert cgconvert.clean(delete=True) == []
    assert (staging / "journal").exists()
    lock.release()
    assert len(cgconvert.clean(delete=True)) == 1
    assert os.listdir() == []


def link_content(folder: Path) -> None:
    (folder / "lock").touch()
    (folder / "content").symlink_to(folder.parent)


IN_THE_WAY: dict[str, Callable[[Path], object]] = {
    "a file of the user's": lambda folder: (folder / "thesis.tex").write_text("years"),
    "a folder without a lock": lambda folder: (folder / "content").mkdir(),
    "a link in place of the content": link_content,
}


@pytest.mark.parametrize("name", [*IN_THE_WAY, "another user's"])
def test_what_only_has_the_name_of_a_staging_folder_is_not_used(
    name: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = staging_folder(Path("m.bin"))
    folder.mkdir()
    if name in IN_THE_WAY:
        IN_THE_WAY[name](folder)
    else:
        monkeypatch.setattr("cgconvert.io.staging.is_users", lambda path: False)
    before = sorted(map(str, Path().rglob("*")))
    assert cgconvert.clean(delete=True) == []
    with pytest.raises(UsageError, match="holds something else or belongs to another user"):
        execute(planned(checkpoint, InMemoryTensor(VALUES)))
    assert [path for path in sorted(map(str, Path().rglob("*"))) if path not in before] == []
    assert name not in IN_THE_WAY or sorted(map(str, Path().rglob("*"))) == before


def test_clean_puts_back_what_a_killed_commit_had_taken(checkpoint: Checkpoint) -> None:
    """The earlier artefact lies in the staging folder when a run is killed between two renames."""
    execute(planned(checkpoint, InMemoryTensor(VALUES)))
    before = {name: Path(name).read_bytes() for name in os.listdir()}
    staging = staging_folder(Path("m.bin"))
    (staging / "content").mkdir(parents=True)
    (staging / "content" / "m.bin").write_bytes(b"newer")
    (staging / "replaced").mkdir()
    for name in before:
        Path(name).rename(staging / "replaced" / name)
    (staging / "lock").touch()
    inode = (staging / "content" / "m.bin").stat().st_ino
    (staging / "commit").write_text(json.dumps({"new": "content/m.bin", "inode": inode}))
    assert len(cgconvert.clean(delete=True)) == 1
    assert {name: Path(name).read_bytes() for name in os.listdir()} == before


@pytest.mark.parametrize(
    "record",
    ["", "{}", "[]", '{"new": "content/m.bin"}', '{"new": "../m.bin", "inode": 1}', '{"inode": 1}'],
)
def test_a_damaged_record_of_a_commit_removes_nothing(record: str, checkpoint: Checkpoint) -> None:
    staging = staging_folder(Path("m.bin"))
    (staging / "replaced").mkdir(parents=True)
    (staging / "lock").touch()
    (staging / "replaced" / "m.bin").write_text("an earlier artefact")
    (staging / "commit").write_text(record)
    for action in (
        lambda: execute(planned(checkpoint, InMemoryTensor(VALUES))),
        lambda: cgconvert.clean(delete=True),
    ):
        with pytest.raises(OutputError, match="commit: is damaged; move away what you need"):
            action()
        assert (staging / "replaced" / "m.bin").read_text() == "an earlier artefact"
