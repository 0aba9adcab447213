"""What lies at the path of a planned output is told apart, without computing the plan."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cgconvert.api.output_state import output_state
from cgconvert.calibrate.calibrated_plan import CalibratedPlan
from cgconvert.formats.read import read
from cgconvert.io.staging import Staging
from cgconvert.model.decoder import Checkpoint
from cgconvert.texts.text import read_text
from cgconvert.write import known_hashes
from cgconvert.write.execute import execute
from cgconvert.write.hashing import file_sha256
from cgconvert.write.plan import LazyPlan
from tests.conftest import first_layers
from tests.support import plans

PLANS: dict[str, Callable[[Checkpoint, Path], LazyPlan]] = {
    "to-hf": lambda source, folder: plans.to_hf(source, folder / "hf"),
    "to-onnx": lambda source, folder: plans.to_onnx(source, folder / "onnx"),
    "to-gguf": lambda source, folder: plans.to_gguf(source, folder / "m.gguf"),
    "quantize": lambda source, folder: plans.quantize(
        source, folder / "q.gguf", type="Q4_0", effort="fast"
    ),
}


@pytest.fixture
def checkpoint(make_checkpoint: Callable[..., Path]) -> Checkpoint:
    return read(str(make_checkpoint()))


@pytest.mark.parametrize("name", PLANS)
def test_an_artefact_is_complete_until_something_of_it_changes(
    name: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    plan = PLANS[name](checkpoint, tmp_path)
    assert output_state(plan).kind == "absent"
    execute(plan)
    assert output_state(plan).kind == "complete"
    output = plan.output
    text = output / "config.json" if plan.is_folder else output
    text.write_bytes(text.read_bytes() + b"\n")
    state = output_state(plan)
    assert state.kind == "foreign"
    assert state.reason == f"changed since it was written: {text.name}"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"type": "Q8_0"}, "has type F16, not Q8_0"),
        ({"type": "Q4_0"}, "has type F16, not Q4_0"),
    ],
)
def test_another_plan_is_told_with_what_differs(
    options: dict[str, Any], reason: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    execute(plans.to_gguf(checkpoint, tmp_path / "m.gguf"))
    state = output_state(plans.to_gguf(checkpoint, tmp_path / "m.gguf", **options))
    assert (state.kind, state.reason) == ("different", reason)


def test_another_source_and_a_missing_file_are_different(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    plan = plans.to_hf(checkpoint, tmp_path / "hf")
    execute(plan)
    (tmp_path / "hf" / "vocab.json").unlink()
    assert (output_state(plan).kind, output_state(plan).reason) == ("different", "lacks vocab.json")
    shutil.rmtree(tmp_path / "hf")
    execute(plan)
    weights = checkpoint.files[0]
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    state = output_state(plans.to_hf(read(str(checkpoint.path)), tmp_path / "hf"))
    assert state.kind == "different"
    assert state.reason.startswith("was made from another source (")


def test_other_files_are_foreign(checkpoint: Checkpoint, tmp_path: Path) -> None:
    plan = plans.to_hf(checkpoint, tmp_path / "hf")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "thesis.tex").write_text("years of work")
    state = output_state(plan)
    assert (state.kind, state.reason) == ("foreign", "there is no cgconvert.json in it")


def test_a_large_file_is_hashed_once(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing remembers the hashes of the source; a look at a finished output reads no weights."""
    plan = plans.to_gguf(checkpoint, tmp_path / "m.gguf")
    execute(plan)
    hashed: list[str] = []

    def recording(path: Path) -> str:
        hashed.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr(known_hashes, "file_sha256", recording)
    assert output_state(plan).kind == "complete"
    assert "model.safetensors" not in hashed
    assert "config.json" in hashed
    checkpoint.files[0].touch()
    assert output_state(plan).kind == "complete"
    assert "model.safetensors" in hashed


def test_a_change_at_once_after_hashing_shows(tmp_path: Path) -> None:
    """The file has the same size and modification time as before, within a tick of the clock."""
    path = tmp_path / "file"
    for number in range(20):
        text = bytes([number]) * known_hashes.SMALL_BYTES
        path.write_bytes(text)
        first, times = known_hashes.known_sha256(path), path.stat()
        with path.open("r+b") as file:
            file.write(b"changed")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert known_hashes.known_sha256(path) != first


@pytest.mark.parametrize("is_folder", [True, False])
def test_the_hash_of_a_file_that_was_exchanged_is_not_remembered(
    is_folder: bool, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program puts a file of the same size in the place of one as soon as it is there."""
    output = tmp_path / "out" / ("hf" if is_folder else "m.gguf")
    plan = (plans.to_hf if is_folder else plans.to_gguf)(checkpoint, output)
    file = output / "model.safetensors" if is_folder else output
    name = "commit_folder" if is_folder else "commit_files"
    commit = getattr(Staging, name)

    def committing(staging: Staging) -> None:
        commit(staging)
        status = file.stat()
        file.unlink()
        file.write_bytes(bytes(status.st_size))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))

    monkeypatch.setattr(Staging, name, committing)
    manifest = execute(plan)
    assert file.stat().st_size > known_hashes.SMALL_BYTES
    assert known_hashes.known_sha256(file) == file_sha256(file)
    assert file_sha256(file) not in {entry["sha256"] for entry in manifest.files.values()}


@pytest.mark.parametrize("format_", ["gguf", "onnx"])
def test_a_calibrated_plan_is_compared_without_computing(
    format_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(plans.to_hf(replace(first_layers(1), name="small"), tmp_path / "small"))
    text = "\n".join(read_text("stdlib", "calibration").documents)[:120_000]
    (tmp_path / "text.py").write_text(text)
    source = read(str(tmp_path / "small"))

    def planned(**more: Any) -> Any:
        return plans.quantize(
            source, tmp_path / ("out.gguf" if format_ == "gguf" else "out"), format=format_,
            calibration=str(tmp_path / "text.py"), bits=4, **more,
        )  # fmt: skip

    plan = planned()
    assert isinstance(plan, CalibratedPlan)
    manifest = execute(plan)
    names = set(manifest.options) - set(plan.options)
    assert names <= set(plan.computed_options)

    def computed(*_: object) -> None:
        raise AssertionError("the plan was computed")

    monkeypatch.setattr(type(plan), "resolve", computed)
    assert output_state(planned()).kind == "complete"
    state = output_state(planned(effort="max"))
    assert state.kind == "different"
    assert "has effort default, not max" in state.reason
