"""Notes: what reading and writing did that the user should know, each a line on stderr."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import cgconvert
from cgconvert.cli.main import main
from tests.support.fine_tunes import fine_tune

SETTING = {"eos_token_id": [3967, 4095, 9999], "chat_format": "raw"}
LINES = (
    "note: generation_config.json: 'chat_format' is left out",
    "note: tune: eos_token_id 9999 is left out: the model has 4096 rows",
)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a fine-tune in the working directory, about which there is something to say."""
    monkeypatch.chdir(tmp_path)
    fine_tune(tmp_path / "tune", generation=SETTING)
    return "tune"


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """Run a command; return the lines on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert not caught.value.code
    return capsys.readouterr().err.splitlines()


def assert_each_once(lines: list[str]) -> None:
    notes = [line for line in lines if line.startswith("note: ")]
    assert len(notes) == len(LINES)
    for note, start in zip(sorted(notes), LINES, strict=True):
        assert note.startswith(start)


def test_a_command_prints_each_note_once(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_each_once(call(capsys, "to-hf", source, "-o", "hf"))
    assert_each_once(call(capsys, "to-hf", source, "-o", "new", "--dry-run"))
    assert call(capsys, "inspect", source) == []
    notes = json.loads(Path("hf/cgconvert.json").read_text())["notes"]
    assert_each_once([f"note: {note}" for note in notes])


def test_a_recipe_prints_a_sources_notes_once(
    source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [{"to-hf": {"output": "a"}}, {"to-hf": {"output": "b", "layout": "phi"}}]
    Path("recipe.yaml").write_text(json.dumps({"source": source, "steps": steps}))
    assert_each_once(call(capsys, "run", "recipe.yaml"))


def test_the_result_has_the_notes(source: str) -> None:
    result = cgconvert.to_hf(source, "hf")
    assert_each_once([f"note: {note}" for note in result.notes])
    assert cgconvert.inspect(source).notes == result.notes
    # An artefact of it has nothing left out: nothing is noted when that is converted again.
    assert cgconvert.to_hf("hf", "again").notes == ()


def test_a_plain_conversion_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fine_tune(tmp_path / "codegen-350M-mono")
    assert call(capsys, "to-hf", "codegen-350M-mono", "-o", "hf") == []
    assert "notes" not in json.loads(Path("hf/cgconvert.json").read_text())
