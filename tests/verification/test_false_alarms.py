"""No correct artefact fails: every type, on random models with the family's heads.

Here width, layers, context and vocabulary are cut; `python -m tests.verification.false_alarms` runs
them whole.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cgconvert.verification.thresholds import Check, Verdict, at_least, at_most
from tests.support.artefacts import WRITERS
from tests.verification.false_alarms import (
    CheckResult,
    as_markdown,
    geometry,
    random_model,
    run,
    worst_of,
)

TYPES = list(WRITERS)

MODELS = {
    "350M uniform": ("350M", 0, 1.0, 2, TYPES),
    "350M sharp": ("350M", 1, 4.0, 2, TYPES),
    "2B uniform": ("2B", 2, 1.0, 2, TYPES[::2]),
    "2B sharp": ("2B", 3, 4.0, 2, TYPES[1::2]),
    "6B sharp": ("6B", 4, 4.0, 1, TYPES[::2]),
    "16B uniform": ("16B", 5, 1.0, 1, TYPES[1::2]),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_correct_artefact_passes(name: str, tmp_path: Path) -> None:
    size, seed, sharpness, layers, types = MODELS[name]
    made = geometry(size, 4096, layers, heads=4, positions=160)
    source = random_model(size, made, seed, sharpness, tmp_path)
    failed = [
        f"{result.type}: {result.check}"
        for checks in run(source, name, types, tmp_path, new_tokens=8)
        for result in checks
        if result.check.verdict == Verdict.FAIL
    ]
    assert not failed


def result(check: Check, model: str = "a") -> CheckResult:
    return CheckResult("onnx-int4", model, check)


def test_a_share_is_the_deviation_over_what_the_bound_allows() -> None:
    assert result(at_most("logits.nmse", 0.1, 0.4)).share == pytest.approx(0.25)
    assert result(at_least("logits.top1_sure", 0.95, 0.9)).share == pytest.approx(0.5)
    assert result(at_most("logits.perplexity_ratio", 1.05, 1.25)).share == pytest.approx(0.2)
    assert result(at_most("finite", 0.0, 0)).share == 0
    assert result(at_most("finite", 1.0, 0)).share == float("inf")
    assert result(at_most("logits.nmse", 0.1, None)).share is None
    assert result(at_most("logits.nmse", None, 0.1)).share is None


def test_the_worst_result_names_its_model_and_failures_are_marked() -> None:
    worst = worst_of(
        [
            result(at_most("cache", 0.1, 0.4), "a"),
            result(at_most("cache", 0.5, 0.4), "b"),
            result(at_most("finite", 0.0, 0)),
            result(at_most("logits.nmse", float("nan"), 0.1), "c"),
        ]
    )
    assert [(w.result.model, w.count, w.failed) for w in worst] == [
        ("b", 2, 1),
        ("a", 1, 0),
        ("c", 1, 1),
    ]
    text = as_markdown(worst)
    assert "| onnx-int4 | cache | 0.5 | <= 0.4 | 125% | b | **1 of 2** |" in text
    assert "| finite" not in text
    assert text.endswith("named above: finite.")
