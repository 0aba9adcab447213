"""The sentence at the end: ship or do not, with the cause that the failed checks point to."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from cgconvert.verification.report.advice import ADVICE, advice, anchor
from cgconvert.verification.report.model import Report, as_json_object
from cgconvert.verification.thresholds import Check, Verdict, at_least, at_most
from cgconvert.verification.weights import TensorError
from tests.support.reports import report

GUIDE = Path(__file__).parents[3] / "docs" / "verify.md"

RIGHT = (
    at_most("provenance", 0.0, 0),
    at_most("weights.equal", 0.0, 0),
    at_most("witness.logits", 1e-7, 1e-5),
    at_most("runtime.nmse", 1e-8, 1e-6),
    at_most("logits.kl_mean", 1e-8, 1e-6),
)
QUANTIZED = (*RIGHT, at_most("weights.error", 0.99, 1))

NAME = "blk.2.attn_output.weight"
DIFFERS = at_most("weights.equal", 3.0, 0, f"3 of 9 differ in {NAME}")
CHANGED = at_most("provenance", 1.0, 0, "x.gguf is not as it was written: its SHA-256 differs")
SOURCE_CHANGED = at_most(
    "provenance", 1.0, 0, "the source, mine, is not what it was made from: its SHA-256 differs"
)
NO_MANIFEST = Check(
    "provenance", None, 0.0, "<=", Verdict.WARNING, "no x.json: not known what it was made from"
)
OTHER_SOURCE = Check(
    "provenance", 0.0, 0.0, "<=", Verdict.WARNING, "made from mine, of another SHA-256"
)


def concluded(*failed: Check, right: tuple[Check, ...] = RIGHT, **changes: object) -> Report:
    """A report in which some checks of `right` have other outcomes."""
    by_name = {check.name: check for check in (*right, *failed)}
    wrong = DIFFERS in failed
    tensors = (TensorError(NAME, "float16", 9, 0, 3 * wrong, 0.1 * wrong, None),)
    made = replace(report("x.gguf", tuple(by_name.values())), tensors=tensors)
    return replace(made, **changes)  # type: ignore[arg-type]


SENTENCES: list[tuple[Report, str]] = [
    (
        concluded(),
        "Ship x.gguf: every stored number is the source's, and llama.cpp computes what "
        "transformers does.",
    ),
    (
        concluded(runtime={"name": "transformers", "version": "-", "device": "cpu"}),
        "Ship x.gguf: every stored number is the source's, and transformers computes the same from "
        "both.",
    ),
    (
        concluded(artefact={**report("x.gguf", RIGHT).artefact, "type": "BF16"}),
        "Ship x.gguf: every stored number is the source's in bfloat16, and llama.cpp computes",
    ),
    (
        concluded(right=QUANTIZED),
        "Ship x.gguf: every stored number is the source's within the rounding of Q8_0, and "
        "llama.cpp loses no more than Q8_0 may.",
    ),
    (
        concluded(NO_MANIFEST),
        "Ship x.gguf: every stored number is the source's, and llama.cpp computes what "
        "transformers does; but mind provenance: no x.json: not known what it was made from.",
    ),
    (
        concluded(CHANGED, DIFFERS),
        f"Do not ship x.gguf: {NAME} differs from the source: the file was changed after it was "
        "written; convert again.",
    ),
    (
        concluded(DIFFERS),
        f"Do not ship x.gguf: {NAME} differs from the source: the conversion wrote it this way; "
        "convert again with cgconvert",
    ),
    (concluded(DIFFERS, NO_MANIFEST), "from the source: nothing says how it was made; convert"),
    (concluded(DIFFERS, OTHER_SOURCE), "the reference is not the source that its manifest names"),
    (concluded(DIFFERS, SOURCE_CHANGED), "the source was changed after the conversion; convert"),
    (concluded(SOURCE_CHANGED), "its SHA-256 differs: nothing else differs; convert again"),
    (concluded(CHANGED), "its SHA-256 differs: nothing that was compared differs; convert again"),
    (
        concluded(at_most("source.groups", 9.4, 2.5, "read with 1"), DIFFERS),
        "Do not ship x.gguf: the source was read with the wrong number of groups (read with 1): "
        "read it with mp_num auto",
    ),
    (
        concluded(at_most("tokenizer.files", 2.0, 0, "merges are missing; 1 more")),
        "Do not ship x.gguf: merges are missing: the conversion wrote it this way",
    ),
    (
        concluded(at_most("runtime.nmse", 0.1, 1e-6), at_most("logits.kl_mean", 0.2, 1e-6)),
        "Do not ship x.gguf: llama.cpp does not compute what is stored (runtime.nmse is 0.1, not "
        "<= 1e-06): every stored number is right, so the fault is in llama.cpp or its build",
    ),
    (
        concluded(at_most("logits.kl_mean", 0.2, 0.1), right=QUANTIZED),
        "Do not ship x.gguf: Q8_0 lost more than it may (logits.kl_mean is 0.2, not <= 0.1): the "
        "file and the runtime are correct, but the type is too small",
    ),
    (
        concluded(at_least("logits.top1_sure", 0.5, 0.9), right=QUANTIZED),
        "Q8_0 lost more than it may (logits.top1_sure is 0.5, not >= 0.9)",
    ),
    (
        concluded(at_most("logits.perplexity_ratio", 0.01, 1.02, minimum=1 / 1.02)),
        "no correct artefact is so much better than its source; give the right reference",
    ),
    (
        concluded(
            Check("calibration.loss", None, None, "<=", Verdict.FAIL, "the promise is impossible"),
            right=QUANTIZED,
        ),
        "Do not ship x.gguf: the promise is impossible: the manifest was changed; bring it back",
    ),
    (
        concluded(at_most("witness.logits", 0.5, 1e-5)),
        "compute different logits from the source: one of the two reads the source wrongly",
    ),
    (
        concluded(
            Check("runtime", None, None, "<=", Verdict.FAIL, "llama-cpp-python is missing"),
            runtime={"name": "llama.cpp", "version": "-", "device": "cpu", "missing": "install it"},
        ),
        "Do not ship x.gguf yet: what is stored is right, but it was not run: install it.",
    ),
    (
        concluded(not_compared="batches and texts"),
        "Ship x.gguf only after a whole verification: no fault is in its files, and "
        "llama.cpp computes one prompt correctly, but quick: batches and texts were not compared.",
    ),
]


@pytest.mark.parametrize(("case", "words"), SENTENCES, ids=[words[:60] for _, words in SENTENCES])
def test_the_sentence_follows_from_the_failed_checks(case: Report, words: str) -> None:
    sentence = case.sentence
    assert words in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert case.passed == sentence.startswith("Ship ")
    assert as_json_object([case])["artefacts"][0]["sentence"] == sentence
    assert as_json_object([case])["sentence"] == sentence


def test_many_tensors_are_counted() -> None:
    wrong = tuple(TensorError(f"t{i}", "float16", 9, 0, 3, 0.1, None) for i in range(5))
    assert (
        "t0, t1 and 3 more tensors differ from the source"
        in concluded(DIFFERS, tensors=wrong).sentence
    )
    assert "t0 and t1 differ from" in concluded(DIFFERS, tensors=wrong[:2]).sentence
    assert "t0, t1 and 1 more tensor differ from" in concluded(DIFFERS, tensors=wrong[:3]).sentence


def test_several_artefacts_end_in_one_sentence() -> None:
    whole = as_json_object([concluded(), concluded(CHANGED, DIFFERS), concluded()])
    assert whole["sentence"] == "Do not ship x.gguf (1 of 3 artefacts)."
    assert as_json_object([concluded(), concluded()])["sentence"] == "Ship all 2 artefacts."
    quick = [concluded(not_compared="batches"), concluded(not_compared="batches")]
    assert as_json_object(quick)["sentence"] == (
        "Ship all 2 artefacts only after a whole verification."
    )


def test_every_check_has_its_advice_and_its_heading() -> None:
    headings = re.findall(r"^#### `(.+)`$", GUIDE.read_text("utf-8"), re.MULTILINE)
    assert sorted(headings) == sorted(ADVICE)
    anchors = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]  # as GitHub does
    assert anchors == [anchor(heading) for heading in headings]
    assert len(set(anchors)) == len(anchors)
    assert advice("weights.equal").endswith("see docs/verify.md#weightsequal")
    assert advice("logits.nmse", ["weights.equal", "logits.nmse"]) == (
        "may follow from weights.equal, fix that first; see docs/verify.md#logitsnmse"
    )
