"""Verification of what the writers write, in the real runtimes; its report; the runtimes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cgconvert.errors import InputError, OutputError, UsageError
from cgconvert.io.progress import SilentProgress
from cgconvert.model.decoder import Checkpoint
from cgconvert.runtimes import open_runtime
from cgconvert.verification.report import write_reports
from cgconvert.verification.report.advice import ADVICE
from cgconvert.verification.report.model import Report, as_json
from cgconvert.verification.report.text import as_table
from cgconvert.verification.thresholds import Verdict
from cgconvert.verification.verify import verify
from cgconvert.write.hashing import file_sha256, hash_checkpoint
from cgconvert.write.plan import Plan
from tests.support import artefacts


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Checkpoint], Plan]:
    def written(name: str, model: Checkpoint) -> Plan:
        return artefacts.write(name, model, tmp_path / "out")

    return written


# One thread: llama.cpp's wait for one another in a loop, for ever on a machine that is busy.
DEFAULTS = {"new_tokens": 8, "threads": 1}


def verified(plan: Plan, source: Checkpoint, **options: object) -> Report:
    return verify(plan.output, plan.format, plan.type, source, "cpu", **DEFAULTS | options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", artefacts.WRITERS)
def test_valid_artefacts_pass(
    name: str, source: Checkpoint, write: Callable[[str, Checkpoint], Plan]
) -> None:
    report = verified(write(name, source), source)
    assert report.passed, as_table(report)
    assert {check.name for check in report.checks} <= ADVICE.keys()
    assert report.sentence.startswith(f"Ship {report.artefact['path']}: every stored number is the")


def test_an_old_end_of_text_in_a_folder_is_caught(
    source: Checkpoint, write: Callable[[str, Checkpoint], Plan]
) -> None:
    plan = write("hf-float16", source)
    for name in ("config.json", "generation_config.json"):
        config = json.loads((plan.output / name).read_text())
        (plan.output / name).write_text(json.dumps(config | {"eos_token_id": 2}))
    report = verified(plan, source)
    assert [c.name for c in report.checks if c.verdict == Verdict.FAIL] == [
        "provenance",
        "settings",
        "end_of_text",
    ]


def test_the_report_names_artefact_source_reference_and_runtime(
    source: Checkpoint, write: Callable[[str, Checkpoint], Plan]
) -> None:
    plan = write("gguf-Q8_0", source)
    report = verified(plan, source)
    whole = json.loads(as_json([report, report]))
    assert whole["schema"] == 1
    assert whole["verdict"] == "pass"
    entry = whole["artefacts"][1]
    assert entry["verdict"] == "pass"
    assert entry["artefact"]["format"] == "gguf"
    assert entry["artefact"]["type"] == "Q8_0"
    assert entry["artefact"]["files"] == {plan.output.name: file_sha256(plan.output)}
    assert entry["source"]["name"] == "codegen-test-mono"
    assert entry["source"]["sha256"] == hash_checkpoint(source)["sha256"]
    assert entry["reference"] == {"weights": "float16", "compute": "float32", "device": "cpu"}
    assert entry["runtime"]["name"] == "llama.cpp"
    assert entry["runtime"]["version"][0].isdigit()
    assert [c["name"] for c in entry["checks"]] == [c.name for c in report.checks]
    assert as_json([report]) == as_json([verified(plan, source)])
    lines = as_table(report).splitlines()
    assert lines[-1] == (
        f"Ship {plan.output}: every stored number is the source's within the rounding of Q8_0, and "
        "llama.cpp loses no more than Q8_0 may."
    )
    (nmse,) = [line for line in lines if "logits.nmse" in line]
    assert nmse.split()[:2] == ["pass", "logits.nmse"]
    assert nmse.split()[3:] == ["<=", "0.004"]


def test_a_reports_format_follows_its_suffix(
    source: Checkpoint, write: Callable[[str, Checkpoint], Plan], tmp_path: Path
) -> None:
    report = verified(write("gguf-Q8_0", source), source, thresholds={"logits.nmse": 1e-9})
    assert not report.passed
    write_reports([report], tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["verdict"] == "fail"
    write_reports([report], tmp_path / "report.txt")
    assert (tmp_path / "report.txt").read_text().endswith(f"\n{report.sentence}\n")
    assert report.sentence.startswith("Do not ship ")
    assert "Q8_0 lost more than it may (logits.nmse is" in report.sentence
    with pytest.raises(UsageError, match=r"ends in \.json"):
        write_reports([report], tmp_path / "report.doc")
    write_reports([report], tmp_path / "absent" / "report.json")
    assert (tmp_path / "absent" / "report.json").is_file()
    with pytest.raises(OutputError, match="is no folder that can be written"):
        write_reports([report], tmp_path / "report.json" / "report.json")


def test_progress_ends_at_its_total_and_a_wrong_format_is_refused(
    source: Checkpoint, write: Callable[[str, Checkpoint], Plan]
) -> None:
    class Steps(SilentProgress):
        def __init__(self) -> None:
            self.left: dict[str, int] = {}

        def step(self, label: str, total: int) -> None:
            self.label, self.left[label] = label, total

        def advance(self, amount: int) -> None:
            self.left[self.label] -= amount

    plan, steps = write("gguf-F16", source), Steps()
    verified(plan, source, progress=steps)
    assert len(steps.left) >= 5
    assert set(steps.left.values()) == {0}
    with pytest.raises(InputError):
        verify(plan.output, "onnx", "float32", source, "cpu")
    with pytest.raises(InputError, match="no thresholds for gguf Q9"):
        verify(plan.output, "gguf", "Q9", source, "cpu")
    with pytest.raises(
        UsageError,
        match="no runtime runs 'coreml' artefacts; there are runtimes for huggingface, onnx",
    ):
        open_runtime("coreml", plan.output)
    with pytest.raises(UsageError, match="does not run gguf"):
        open_runtime("gguf", plan.output, name="onnxruntime")
