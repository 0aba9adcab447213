"""Every decoy is caught by `verify`, or named, or nothing opens it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import cgconvert
from cgconvert.errors import InputError
from cgconvert.formats.loader_files import Unchecked
from cgconvert.formats.registry import load
from cgconvert.model.decoder import Checkpoint
from cgconvert.verification.report import WRITERS
from cgconvert.verification.report.model import Report
from cgconvert.verification.thresholds import Check, Verdict
from cgconvert.verification.verify import verify
from cgconvert.write.plan import Plan
from tests.decoys.decoy import (
    CHECKED,
    GGUF,
    HARMLESS,
    HF,
    NAMED,
    ONNX,
    REFUSED,
    Decoy,
    all_of,
    file,
    second_copy,
)  # fmt: skip
from tests.decoys.table import DECOYS

Planted = Callable[[Decoy], Path]


@pytest.fixture(scope="session")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _one_cache(_folder: Path, _private_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference says the same of every prompt, so it is asked once."""
    monkeypatch.setenv("CGCONVERT_CACHE", str(_folder / "cgconvert"))


def verified(artefact: Path, plan: Plan, source: Checkpoint, *, strict: bool = False) -> Report:
    return verify(
        artefact, plan.format, plan.type, source, "cpu", quick=True, strict=strict, threads=1
    )


def by_name(report: Report) -> dict[str, Check]:
    return {check.name: check for check in report.checks}


@pytest.mark.parametrize("decoy", DECOYS, ids=lambda decoy: f"{decoy.kind}: {decoy.name}")
def test_a_decoy_is_caught_named_or_harmless(
    decoy: Decoy, planted: Planted, right: dict[str, Plan], decoy_source: Checkpoint
) -> None:
    artefact, plan = planted(decoy) / decoy.graph, right[decoy.kind]
    if decoy.answer == REFUSED:
        with pytest.raises(InputError) as refusal:
            verified(artefact, plan, decoy_source)
        assert decoy.named in str(refusal.value)
        assert "\n" not in str(refusal.value)
        return
    report = verified(artefact, plan, decoy_source)
    check = by_name(report)[decoy.answer if decoy.answer in by_name(report) else CHECKED]
    expected = {HARMLESS: Verdict.PASS, NAMED: Verdict.WARNING}.get(decoy.answer, Verdict.FAIL)
    assert check.verdict == expected, check
    assert decoy.named in check.detail
    if decoy.answer == NAMED:
        judged = by_name(verified(artefact, plan, decoy_source, strict=True))[CHECKED]
        assert judged.verdict == Verdict.FAIL
        assert judged.detail == check.detail


def test_there_are_decoys_of_every_format_and_of_every_answer() -> None:
    assert len({(decoy.kind, decoy.name) for decoy in DECOYS}) == len(DECOYS) >= 80
    for kind in (HF, ONNX, GGUF):
        answers = {decoy.answer for decoy in DECOYS if decoy.kind == kind}
        assert answers >= {CHECKED, HARMLESS}
    assert {decoy.answer for decoy in DECOYS} >= {NAMED, REFUSED, "settings", "tokenizer.files"}


@pytest.mark.parametrize("kind", [HF, ONNX, GGUF])
def test_a_right_artefact_has_nothing_unchecked(
    kind: str, right: dict[str, Plan], decoy_source: Checkpoint
) -> None:
    check = by_name(verified(right[kind].output, right[kind], decoy_source, strict=True))[CHECKED]
    assert (check.verdict, check.value, check.detail) == (Verdict.PASS, 0, "")


@pytest.mark.parametrize("kind", [HF, ONNX, GGUF])
def test_what_a_runtime_gets_are_the_artefacts_own_files(kind: str, right: dict[str, Plan]) -> None:
    plan = right[kind]
    unchecked = load(plan.format).unchecked(plan.output)
    assert unchecked == Unchecked(unchecked.folder if unchecked else Path())


def test_graphs_that_are_verified_together_belong_to_their_folder(
    planted: Planted, right: dict[str, Plan], decoy_source: Checkpoint
) -> None:
    second = second_copy("onnx/model_q4.onnx", "onnx/model.onnx")
    artefact = planted(Decoy("two graphs", ONNX, second))
    together = cgconvert.verify(artefact, reference=decoy_source, quick=True, strict=True)
    assert [check.verdict for check in together.checks if check.name == CHECKED] == [
        Verdict.PASS, Verdict.FAIL,  # the configuration names the type of the first
    ]  # fmt: skip
    alone = verified(artefact / "onnx/model.onnx", right[ONNX], decoy_source)
    assert by_name(alone)[CHECKED].verdict == Verdict.FAIL


def test_the_detail_names_a_few_and_counts_the_rest(
    planted: Planted, right: dict[str, Plan], decoy_source: Checkpoint
) -> None:
    many = all_of(file("second.safetensors"), *(file(f"notes{n}.dat") for n in range(30)))
    report = verified(planted(Decoy("many", HF, many)), right[HF], decoy_source)
    check = by_name(report)[CHECKED]
    assert check.value == 31
    assert check.detail.startswith("second.safetensors (vLLM loads every safetensors file")
    assert check.detail.endswith("28 more")
    assert report.sentence.startswith(f"Do not ship {report.artefact['path']}: second.safetensors")


def test_every_report_names_a_decoy_and_what_to_do(
    planted: Planted, right: dict[str, Plan], decoy_source: Checkpoint
) -> None:
    artefact = planted(Decoy("a pickle", HF, file("pytorch_model.bin")))
    reports = (verified(artefact, right[HF], decoy_source),)
    for suffix, write in WRITERS.items():
        text = write(reports).replace("\\", "")  # Markdown's
        assert "pytorch_model.bin (a second set of weights" in text, suffix
        if suffix != ".json":
            assert "remove what is named" in text, suffix


@pytest.mark.parametrize("is_strict", [False, True])
def test_a_verification_is_strict_if_it_is_asked(
    is_strict: bool, planted: Planted, decoy_source: Checkpoint
) -> None:
    artefact = planted(Decoy("notes", HF, file("notes.dat")))
    result = cgconvert.verify(artefact, reference=decoy_source, quick=True, strict=is_strict)
    assert result.passed is not is_strict
    assert "notes.dat belongs to no format" in str(result)


def test_a_folder_of_too_many_files_is_refused(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cgconvert.formats.loader_files.MAX_FILES", 40)
    many = all_of(*(file(f"notes/{n}.dat") for n in range(41)))
    with pytest.raises(InputError, match="more than 40 files"):
        load("huggingface").unchecked(planted(Decoy("too many", HF, many)))
