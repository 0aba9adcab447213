"""No correct artefact fails: every type, on random models with the family's heads.

Here width, layers, context and vocabulary are cut; `python -m tests.verify.false_alarms` runs them
whole.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cgconvert.verify.verdict import Check, Verdict, at_least, at_most
from tests.support.artefacts import WRITERS
from tests.verify.false_alarms import Seen, as_markdown, geometry, random_model, run, worst_of

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
        f"{seen.type}: {seen.check}"
        for checks in run(source, name, types, tmp_path, new_tokens=8)
        for seen in checks
        if seen.check.verdict == Verdict.FAIL
    ]
    assert not failed


def seen(check: Check, model: str = "a") -> Seen:
    return Seen("onnx-int4", model, check)


def test_shares_of_a_bound() -> None:
    assert seen(at_most("logits.nmse", 0.1, 0.4)).share == pytest.approx(0.25)
    assert seen(at_least("logits.top1_sure", 0.95, 0.9)).share == pytest.approx(0.5)
    assert seen(at_most("logits.perplexity_ratio", 1.05, 1.25)).share == pytest.approx(0.2)
    assert seen(at_most("finite", 0.0, 0)).share == 0
    assert seen(at_most("finite", 1.0, 0)).share == float("inf")
    assert seen(at_most("logits.nmse", 0.1, None)).share is None
    assert seen(at_most("logits.nmse", None, 0.1)).share is None


def test_the_worst_is_told_with_its_model_and_failures_are_marked() -> None:
    found = worst_of(
        [
            seen(at_most("cache", 0.1, 0.4), "a"),
            seen(at_most("cache", 0.5, 0.4), "b"),
            seen(at_most("finite", 0.0, 0)),
            seen(at_most("logits.nmse", float("nan"), 0.1), "c"),
        ]
    )
    assert [(w.seen.model, w.count, w.failed) for w in found] == [
        ("b", 2, 1),
        ("a", 1, 0),
        ("c", 1, 1),
    ]
    text = as_markdown(found)
    assert "| onnx-int4 | cache | 0.5 | <= 0.4 | 125% | b | **1 of 2** |" in text
    assert "| finite" not in text
    assert text.endswith("named above: finite.")
