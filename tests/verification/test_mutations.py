"""Every planted conversion bug is caught, for what it is, in real artefacts of every format.

Each is planted in the trained model and in a random one with sharp attention, or in a fine-tune, in
one type at a time; `python -m tests.mutations` plants all of them in every type.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from cgconvert import embedded
from cgconvert.formats.read import read
from cgconvert.model.decoder import Checkpoint
from cgconvert.verification.thresholds import Verdict
from cgconvert.write.plan import Plan
from tests.conftest import first_layers
from tests.mutations import MUTATIONS, Mutation, Outcome, survey, verified
from tests.mutations.fine_tunes import fine_tune_source
from tests.mutations.mutation import CALIBRATED
from tests.support.artefacts import write, write_all
from tests.support.tampering import checkpoint

DOCUMENT = Path(__file__).parents[2] / "docs" / "mutations.md"

POSITIONS = 96
"""How much of the trained model's context of 512 is used: it takes half the time."""

WEIGHTLESS = ("config.json", "generation_config.json", "genai_config.json", "metadata",
              "tokenizer.json", "tokenizer_config.json")  # fmt: skip
"""Mistakes there have nothing to do with the weights: the models take turns."""


@dataclass
class World:
    """A model, its right artefacts as they are asked for, and what was seen of wrong ones."""

    source: Checkpoint
    folder: Path
    right: dict[str, Plan] = field(default_factory=dict)

    def plant(self, mutation: Mutation, type_: str) -> Outcome:
        if mutation.files is not None and type_ not in self.right:
            self.right |= write_all([type_], self.source, self.folder / "right")
        pairs = [(mutation, type_)]
        ((outcome, _),) = survey(pairs, self.source, self.right, self.folder / "planted")
        return outcome


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    trained = read(embedded.NAME)
    g = replace(trained.geometry, n_positions=POSITIONS)
    models = {
        "sharp": checkpoint(tmp_path_factory.mktemp("source"), sharpness=4),
        "trained": replace(trained, decoder=replace(trained.decoder, geometry=g)),
        "fine-tune": fine_tune_source(tmp_path_factory.mktemp("source") / "fine-tune"),
        "one layer": first_layers(1, positions=POSITIONS),
    }
    return {name: World(m, tmp_path_factory.mktemp(name)) for name, m in models.items()}


@pytest.fixture(autouse=True)
def _one_cache(
    worlds: dict[str, World], _private_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference says the same of every prompt, so it is asked once."""
    monkeypatch.setenv("CGCONVERT_CACHE", str(worlds["sharp"].folder / "cache"))


def cases() -> Iterator[ParameterSet]:
    for number, mutation in enumerate(MUTATIONS):
        for turn, model in enumerate(mutation.models):
            if mutation.where in WEIGHTLESS and number % len(mutation.models) != turn:
                continue
            type_ = mutation.types[(number + turn) % len(mutation.types)]
            name = f"{mutation.where}: {mutation.name}, {model} {type_}"
            yield pytest.param(mutation, model, type_, id=name)


@pytest.mark.parametrize(("mutation", "model", "type_"), cases())
def test_a_planted_bug_is_caught(
    mutation: Mutation, model: str, type_: str, worlds: dict[str, World]
) -> None:
    outcome = worlds[model].plant(mutation, type_)
    assert not outcome.error
    assert outcome.caught, f"failed: {outcome.failed}; none of {sorted(mutation.caught_by)}"
    assert "provenance" not in outcome.failed  # the manifest's hashes were made to fit


def test_logits_alone_miss_what_other_checks_catch(worlds: dict[str, World]) -> None:
    """What a comparison of logits has no way of seeing, or too coarse bounds for."""
    missed = {
        "NaN in a row no token has": "hf-float16",
        "keys and values exchanged in the cache": "onnx-float32",
        "padding not masked": "onnx-float32",
        "end of text 2 in the generation configuration": "hf-float16",
        "epsilon of one norm": "onnx-int4",
        "a flipped bit": "gguf-Q8_0",
        "a zero point off by one": "onnx-int4",
    }
    for mutation in MUTATIONS:
        if mutation.name in missed:
            outcome = worlds["trained"].plant(mutation, missed.pop(mutation.name))
            assert outcome.caught
            assert not outcome.by_logits, outcome
    assert not missed


def test_a_calibrated_artefact_keeps_its_promise(worlds: dict[str, World]) -> None:
    """It has room to its bound, so that no processor's rounding makes it fail."""
    world = worlds["one layer"]
    (kind,) = CALIBRATED
    plan = world.right.get(kind) or write(kind, world.source, world.folder)
    checks = {check.name: check for check in verified(plan, world.source).checks}
    assert not [name for name, check in checks.items() if check.verdict == Verdict.FAIL]
    check = checks["calibration.loss"]
    assert check.value is not None
    assert check.threshold is not None
    promised = plan.options["promise"]
    assert 0.9 * promised["kl"] < check.value < 0.8 * check.threshold
    assert check.threshold < 3 * promised["kl"]


def test_mutations_have_unique_names_and_are_all_documented() -> None:
    names = [(m.where, m.name) for m in MUTATIONS]
    assert len(set(names)) == len(names) >= 36
    text = DOCUMENT.read_text(encoding="utf-8")
    assert not [name for where, name in names if f"| {name} | {where} |" not in text]
    formats = {t.split("-")[0] for m in MUTATIONS for t in m.types}
    assert formats == {"hf", "onnx", "gguf"}
