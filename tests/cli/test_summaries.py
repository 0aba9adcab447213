"""A dry run and `inspect` print a summary that fits the terminal, and tensors only if asked to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cgconvert.calibrate.estimate import Measurements
from cgconvert.cli.main import main
from cgconvert.io.terminal import cell_width, wrapped_fields

TINY = "codegen-tiny-mono"
DRY_RUNS = {
    "to-gguf": ("to-gguf", TINY, "--type", "Q4_K_M"),
    "to-hf": ("to-hf", TINY, "--layout", "phi"),
    "to-onnx": ("to-onnx", TINY, "--bits", "4"),
    "quantize": ("quantize", TINY, "--type", "Q8_0", "--effort", "fast"),
    "calibrate": ("quantize", TINY, "--bits", "4"),
    "run": ("run", "recipe.yaml"),
}
RECIPE = {"source": TINY, "steps": [{"to-gguf": {"type": "Q8_0", "output": "a.gguf"}}]}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # Two numbers that change: free space, and a time that is measured.
    monkeypatch.setattr("cgconvert.write.plan.free_bytes", lambda output: 60e9)
    monkeypatch.setattr("cgconvert.calibrate.calibrated_plan.free_bytes", lambda output: 60e9)
    monkeypatch.setattr(Measurements, "_timed", lambda self, operation: 1e-3)
    Path("recipe.yaml").write_text(json.dumps(RECIPE))
    return tmp_path


def lines_of(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> list[str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    printed = capsys.readouterr()
    assert caught.value.code == code, printed.err
    return (printed.out if not code else printed.err).splitlines()


@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.parametrize("command", DRY_RUNS)
def test_a_dry_run_ends_with_its_summary(
    command: str,
    columns: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = lines_of(capsys, *DRY_RUNS[command], "--dry-run")
    names = ["path", "type", "size", *["text"] * (command == "calibrate"), "needs"]
    names += ["time"] * (command in ("quantize", "calibrate"))
    # A recipe's summary stands between the name of its step and the count of all steps.
    end = len(whole) - (command == "run")
    assert [line.split(":")[0] for line in whole[end - len(names) : end]] == names
    assert len(whole) == len(names) + 2 * (command == "run")
    monkeypatch.setenv("COLUMNS", str(columns))
    narrow = lines_of(capsys, *DRY_RUNS[command], "--dry-run")
    assert all(cell_width(line) <= columns for line in narrow)
    assert "".join("".join(narrow).split()) == "".join("".join(whole).split())
    listed = lines_of(capsys, *DRY_RUNS[command], "--dry-run", "--tensors")
    assert listed[-len(narrow) + (command == "run") :] == narrow[(command == "run") :]
    assert sum(" B  from " in line for line in listed) > 40 or command == "calibrate"
    assert not any(" B  from " in line for line in narrow)


def test_tensors_are_listed_of_a_dry_run_only(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("to-gguf", "run"):
        (line,) = lines_of(capsys, *DRY_RUNS[command], "--tensors", code=2)
        assert line == "cgconvert: --tensors lists what would be written: it goes with --dry-run"
    assert not Path("out").exists()


@pytest.mark.parametrize("columns", [80, 40])
def test_inspect_ends_with_the_size(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines_of(capsys, "to-gguf", TINY, "-o", "a.gguf")
    monkeypatch.setenv("COLUMNS", str(columns))
    for source in (TINY, "a.gguf"):
        summary = lines_of(capsys, "inspect", source)
        assert all(cell_width(line) <= columns for line in summary)
        assert summary[0].startswith("path ")
        assert summary[-1].startswith("size ")
        listed = lines_of(capsys, "inspect", source, "--tensors")
        assert listed[-len(summary) :] == summary
        description = json.loads("\n".join(lines_of(capsys, "inspect", source, "--json")))
        assert len(listed) == len(summary) + len(description["tensors"]) + 1


def test_fields_are_wrapped_and_nothing_is_cut() -> None:
    fields = [("a", "one two three"), ("longer", "out/codegen-350M-mono/gguf/model.gguf")]
    assert wrapped_fields(fields, None) == [
        "a      one two three",
        "longer out/codegen-350M-mono/gguf/model.gguf",
    ]
    for width in (80, 40, 20):
        lines = wrapped_fields(fields, width)
        assert all(len(line) <= width for line in lines)
        assert "".join("".join(lines).split()) == "aonetwothreelonger" + fields[1][1]
