"""Progress: silent unless asked for, a bar on stderr if asked, any object of the protocol."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

import cgconvert
from cgconvert import embedded
from cgconvert.api.execution import ProgressBar, progress_for
from cgconvert.io.progress import SilentProgress


class Recorded:
    """Keeps the steps, their totals and how much of each was reported."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.totals: list[int] = []
        self.amounts: list[int] = []
        self.finished = False
        self.finishes = 0

    def step(self, label: str, total: int) -> None:
        self.steps.append(label)
        self.totals.append(total)
        self.amounts.append(0)

    def advance(self, amount: int) -> None:
        self.amounts[-1] += amount

    def finish(self) -> None:
        self.finished = True
        self.finishes += 1


def test_nothing_is_printed_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    cgconvert.to_gguf("codegen-tiny-mono", "a.gguf")
    cgconvert.to_gguf("codegen-tiny-mono", "b.gguf", progress="auto")  # stderr is no terminal
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_a_bar_is_drawn_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    cgconvert.to_gguf("codegen-tiny-mono", "a.gguf", progress=True)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "writing a.gguf" in printed.err
    assert "100%" in printed.err


def test_an_object_gets_every_step_and_amount() -> None:
    progress = Recorded()
    result = cgconvert.to_gguf("codegen-tiny-mono", "a.gguf", progress=progress)
    assert progress.steps == ["writing a.gguf", "hashing"]
    assert progress.totals == [result.bytes, result.bytes]
    assert progress.amounts[1] == result.bytes
    assert progress.finished
    assert progress.finishes == 1  # reading took no step


def test_what_progress_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(progress_for(None), SilentProgress)
    assert isinstance(progress_for(False), SilentProgress)
    assert isinstance(progress_for(True), ProgressBar)
    assert isinstance(progress_for("auto"), SilentProgress)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert isinstance(progress_for("auto"), ProgressBar)


def test_measuring_the_groups_shows_progress() -> None:
    progress = Recorded()
    model = cgconvert.load("codegen-tiny-mono", mp_num="auto", progress=progress)
    assert model.geometry.mp_num == 4
    assert progress.steps == ["measuring the groups of qkv_proj"]
    assert progress.amounts == progress.totals == [6]
    assert progress.finished


def test_unpacking_an_archive_shows_progress(tmp_path: Path) -> None:
    archive = tmp_path / "model.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(embedded.path(), "model")
    progress = Recorded()
    cgconvert.to_gguf(archive, tmp_path / "a.gguf", progress=progress)
    assert progress.steps == [f"unpacking {archive}", f"writing {tmp_path / 'a.gguf'}", "hashing"]
    assert progress.amounts[0] == progress.totals[0] == archive.stat().st_size
