"""A quick verification: files and one prompt are compared, and what is left out is said."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import cgconvert
from cgconvert.errors import InputError
from cgconvert.formats.registry import load
from cgconvert.model.decoder import Checkpoint
from cgconvert.verification import reference as reference_module
from cgconvert.verification.report.advice import ADVICE
from cgconvert.verification.report.model import Report, as_json
from cgconvert.verification.thresholds import Verdict
from cgconvert.verification.verify import NOT_COMPARED, verify
from cgconvert.write.manifest import manifest_path
from cgconvert.write.plan import Plan
from tests.support.artefacts import WRITERS, copied, write, write_all
from tests.support.tampering import rescale_block

TINY = "codegen-tiny-mono"
LEFT_OUT = ("logits.", "witness.", "cache", "batch", "generation", "source.groups",
            "runtime.context_end", "runtime.graph")  # fmt: skip


def quickly(plan: Plan, source: Checkpoint, artefact: Path | None = None) -> Report:
    return verify(
        artefact or plan.output, plan.format, plan.type, source, "cpu", threads=1, quick=True
    )


@pytest.fixture(scope="module")
def right(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    types = ("hf-float16", "onnx-int4", "gguf-F16", "gguf-Q8_0", "gguf-Q4_0")
    return write_all(types, source, tmp_path_factory.mktemp("right"))


@pytest.mark.parametrize("name", WRITERS)
def test_right_artefacts_pass_quickly(name: str, source: Checkpoint, tmp_path: Path) -> None:
    report = quickly(write(name, source, tmp_path), source)
    names = [check.name for check in report.checks]
    assert report.passed, report.sentence
    assert not [check for check in names if check.startswith(LEFT_OUT)]
    assert {"provenance", "weights.equal", "tokenizer.files", "runtime.nmse", "end_of_text",
            "tokenizer.ids"} <= set(names) <= ADVICE.keys()  # fmt: skip
    assert report.prompts["sequences"] == 1
    assert f"quick: {NOT_COMPARED} were not compared" in report.sentence
    entry = json.loads(as_json([report]))["artefacts"][0]
    assert (entry["quick"], entry["not_compared"]) == (True, NOT_COMPARED)


@pytest.mark.parametrize("name", ["hf-float16", "onnx-int4", "gguf-F16", "gguf-Q8_0", "gguf-Q4_0"])
def test_a_wrong_number_in_a_compared_row_is_found_quickly(
    name: str, source: Checkpoint, right: dict[str, Plan], tmp_path: Path
) -> None:
    plan, artefact = right[name], copied(right[name], tmp_path)
    tensors = load(plan.format).stored_artefact(artefact, source.decoder).tensors
    wrong = next(t for n, t in tensors.items() if "fc_in.weight" in n or "ffn_up.weight" in n
                 or "fc1.weight" in n)  # fmt: skip
    rescale_block(wrong, 0, 8.0)
    manifest_path(artefact).unlink()
    report = quickly(plan, source, artefact)
    failed = {check.name for check in report.checks if check.verdict == Verdict.FAIL}
    assert failed & {"weights.equal", "weights.error"}


def test_only_one_prompt_is_computed_and_transformers_is_not_asked(
    source: Checkpoint, right: dict[str, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences: list[int] = []
    forward = reference_module.Reference._forward

    def counted(self: reference_module.Reference, batch: list[list[int]]) -> object:
        sequences.append(len(batch))
        return forward(self, batch)

    monkeypatch.setattr(reference_module.Reference, "_forward", counted)
    quickly(right["gguf-Q8_0"], source)
    assert sequences == [1]


def test_quick_takes_no_text(right: dict[str, Plan]) -> None:
    with pytest.raises(cgconvert.UsageError, match="`quick` compares no text"):
        cgconvert.verify(
            right["gguf-F16"].output, quick=True, text=["stdlib"], reference="codegen-tiny-mono"
        )


@pytest.mark.parametrize("has_manifest", [True, False])
def test_what_is_no_part_of_an_artefact_is_not_read(
    has_manifest: bool, source: Checkpoint, right: dict[str, Plan], tmp_path: Path
) -> None:
    """A report holds no hash of it: it may be a link to a secret, or take days to read."""
    artefact, secret = copied(right["hf-float16"], tmp_path), tmp_path / "secret"
    secret.write_text("a line of the user's")
    (artefact / "notes.txt").symlink_to(secret)
    with (artefact / "extra.bin").open("wb") as file:
        file.truncate(4 << 40)
    if has_manifest:
        (artefact / "README.md").unlink()
        (artefact / "README.md").symlink_to(secret)
    else:
        manifest_path(artefact).unlink()
    report = quickly(right["hf-float16"], source, artefact)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= report.artefact["files"].keys()
    assert not {"notes.txt", "extra.bin", "README.md"} & report.artefact["files"].keys()
    assert hashlib.sha256(secret.read_bytes()).hexdigest() not in as_json([report])
    details = {check.name: check.detail for check in report.checks}
    assert "extra.bin" in details["files"]
    if has_manifest:
        assert "README.md has 20 bytes, the manifest says" in details["provenance"]


@pytest.mark.parametrize("name", ["hf-float16", "onnx-int4", "gguf-Q8_0"])
def test_headers_come_before_bytes(
    name: str,
    source: Checkpoint,
    right: dict[str, Plan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    artefact = copied(right[name], tmp_path)
    files = [artefact] if artefact.is_file() else [f for f in artefact.rglob("*") if f.is_file()]
    with max(files, key=lambda path: path.stat().st_size).open("r+b") as file:
        file.truncate(1000)
    hashed: list[Path] = []
    monkeypatch.setattr(
        "cgconvert.verification.verify.file_sha256", lambda path, advance: hashed.append(path)
    )
    with pytest.raises(InputError):
        quickly(right[name], source, artefact)
    assert hashed == []
