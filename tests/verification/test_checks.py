"""The checks on a stand-in runtime: what passes, what is caught, what is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from torch.nn.functional import gelu

from cgconvert.errors import InputError
from cgconvert.formats.registry import load
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.tensor import InMemoryTensor
from cgconvert.runtimes.runtime import Runtime
from cgconvert.verification import reference as reference_module
from cgconvert.verification.checks import LogitComparisons, run_checks
from cgconvert.verification.evidence import Evidence, gather_evidence
from cgconvert.verification.observe import observe
from cgconvert.verification.reference import Reference
from cgconvert.verification.thresholds import (
    Check,
    Verdict,
    at_least,
    at_most,
    thresholds_for,
    worst_verdict,
)
from tests.mutations import WRONG
from tests.support.tampering import checkpoint

STRICT = ("onnx", "float32")
LOOSEST_FLOAT = ("onnx", "float16")


@pytest.fixture(scope="module")
def right(source: Checkpoint) -> Evidence:
    return evidence(StandIn(source), source)


class StandIn(Runtime):
    """A runtime that is the reference itself, so that the checks meet no noise but their own."""

    name = "stand-in"
    device = "cpu"
    takes_batches = True
    n_positions = property(lambda self: self.model.geometry.n_positions)
    tokenizer_size = property(lambda self: self.model.tokenizer.size)
    eos_token_ids = property(lambda self: self.model.eos_token_ids)

    def __init__(self, model: Checkpoint) -> None:
        self.model = model
        self.reference = Reference(model.decoder)
        self.past: list[int] = []

    @classmethod
    def load(cls, path: Path, device: str = "cpu", threads: int | None = None) -> Self:
        return cls(checkpoint(path))

    def reset(self) -> None:
        self.past = []

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        self.past = [*self.past, *ids]
        return self.reference.logits([self.past])[0][-len(ids) :]

    def tokenize(self, text: str) -> list[int]:
        return self.model.tokenizer.encode(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        return self.model.tokenizer.decode(ids)

    def batch(self, sequences: Sequence[Sequence[int]], steps: int = 0) -> list[np.ndarray]:
        return self.reference.logits(sequences)


def evidence(runtime: Runtime, source: Checkpoint, stored: Checkpoint | None = None) -> Evidence:
    """What the runtime does, and `stored` if the artefact's weights are not the source's."""
    observation = observe(runtime, source, new_tokens=12)
    own = (lambda: Reference(stored.decoder)) if stored else None
    return gather_evidence(observation, source, Reference(source.decoder), own)


def judged(evidence: Evidence, row: tuple[str, str] = STRICT) -> dict[str, Check]:
    checks = run_checks(evidence, LogitComparisons.of(evidence), thresholds_for(*row))
    return {check.name: check for check in checks}


def failed(evidence: Evidence, row: tuple[str, str] = STRICT) -> set[str]:
    return {name for name, check in judged(evidence, row).items() if check.verdict == Verdict.FAIL}


def test_the_right_model_passes(right: Evidence) -> None:
    checks = judged(right)
    assert worst_verdict(checks.values()) == Verdict.PASS
    assert (
        checks["generation"].detail
        == "24 of 24 tokens as the stored weights give, 24 as the source"
    )
    assert checks["logits.kl_mean"].value == pytest.approx(0, abs=1e-12)
    assert checks["logits.top1"].verdict == Verdict.INFO
    assert checks["logits.top1"].value == 1


OUT_OF_SIGHT = {
    "a padded row wins", "half the context", "subnormal weights flushed to 0",
    "white-space tokens lost", "half of the merges lost", "merges in reverse order",
    "two letters exchanged in the vocabulary",
}  # fmt: skip
"""Mistakes that the logits of real tokens do not show."""


@pytest.mark.parametrize("name", sorted(WRONG.keys() - OUT_OF_SIGHT))
def test_a_planted_mistake_shows_in_the_logits(
    name: str, source: Checkpoint, right: Evidence
) -> None:
    wrong = Reference(WRONG[name](source).decoder).logits(right.observation.sequences)
    mistaken = replace(right, observation=replace(right.observation, logits=np.concatenate(wrong)))
    assert {"logits.nmse", "runtime.nmse"} <= failed(mistaken, LOOSEST_FLOAT)


@pytest.mark.parametrize("name", ["rotary pairs in halves", "an MLP scaled by 1.05"])
def test_a_runtime_that_obeys_wrong_weights_is_not_to_blame(name: str, source: Checkpoint) -> None:
    wrong = WRONG[name](source)
    failures = failed(evidence(StandIn(wrong), source, wrong), LOOSEST_FLOAT)
    assert "logits.nmse" in failures
    assert not any(check.startswith(("runtime.", "generation")) for check in failures)


def test_a_runtime_that_disobeys_its_weights_shows_though_little_was_lost(
    source: Checkpoint,
) -> None:
    """Below what 4 bits may lose, far above what a runtime's arithmetic may add."""
    scaled = source.decoder.ln_f_weight.read() * 1.05
    scaled_model = replace(
        source, decoder=replace(source.decoder, ln_f_weight=InMemoryTensor(scaled))
    )
    failures = failed(evidence(StandIn(scaled_model), source), ("onnx", "int4"))
    assert failures == {"runtime.nmse", "runtime.context_end"}


def test_weights_that_make_no_model_leave_nothing_to_compare_the_runtime_with(
    source: Checkpoint, right: Evidence
) -> None:
    def no_model() -> Reference:
        raise InputError("h.0.ln_1.weight is missing")

    modelless = gather_evidence(right.observation, source, Reference(source.decoder), no_model)
    check = judged(modelless)["runtime.nmse"]
    assert (check.value, check.verdict) == (None, Verdict.INFO)
    assert check.detail == "its weights make no model: h.0.ln_1.weight is missing"


def test_exact_gelu_shows_where_the_runtime_is_exact(
    source: Checkpoint, right: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_module, "gelu", gelu)
    wrong = Reference(source.decoder).logits(right.observation.sequences)
    mistaken = replace(right, observation=replace(right.observation, logits=np.concatenate(wrong)))
    assert {"runtime.relative_error", "logits.nmse"} <= failed(mistaken)


class Forgetful(StandIn):
    """Its cache loses the first token once there are more than 40."""

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        if len(self.past) > 40:
            self.past = self.past[1:]
        return super().feed(ids)


class Misplaced(StandIn):
    """Every cached step is one position late."""

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        if len(self.past) == 1:
            self.past = self.past * 2
        return super().feed(ids)


@pytest.mark.parametrize("runtime", [Forgetful, Misplaced])
def test_a_wrong_cache_is_caught_though_every_full_pass_is_right(
    runtime: type[StandIn], source: Checkpoint
) -> None:
    wrong = failed(evidence(runtime(source), source), LOOSEST_FLOAT)
    assert {"cache"} <= wrong <= {"cache", "generation", "runtime.context_end"}


class WrongTail(StandIn):
    """A decode that goes wrong when nothing but greedy generation goes so far."""

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        logits = super().feed(ids)
        if len(ids) == 1 and len(self.past) == 56:  # half of the context, and nine tokens
            logits[-1, ord("q")] += 100
        return logits


def test_generation_reports_the_first_different_token(source: Checkpoint) -> None:
    mistaken = evidence(WrongTail(source), source)
    check = judged(mistaken)["generation"]
    assert check.verdict == Verdict.FAIL
    assert check.value == 2  # once in each of two openings
    assert check.detail.startswith("22 of 24 tokens as the stored weights give, 22 as the source;")
    assert "0 differences within the noise, first at token 9 of prompt 1" in check.detail


def test_a_near_tie_is_excused(source: Checkpoint, right: Evidence) -> None:
    expected = right.source_outputs.generated[0]
    for gap, wrong in ((0.019, 0), (0.021, 1)):
        logits = expected.logits.copy()
        logits[0, 1] = logits[0, 0] - gap
        ids = (int(expected.ids[0, 1]), *right.observation.generated[0][1:])
        near = replace(expected, logits=logits)
        noisy = right.observation.logits.copy()
        noisy[0, right.source_outputs.logits.ids[0, 0]] += 0.01  # two logits may lie 0.02 nearer
        outputs = replace(
            right.source_outputs, generated=(near, *right.source_outputs.generated[1:])
        )
        observation = replace(
            right.observation, logits=noisy, generated=(ids, *right.observation.generated[1:])
        )
        tied = replace(
            right, observation=observation, source_outputs=outputs, stored_outputs=outputs
        )
        assert judged(tied)["generation"].value == wrong


class Drowned(StandIn):
    """Wrong near the end of its context only, which no prompt reaches."""

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        logits = super().feed(ids)
        if len(self.past) > self.n_positions - 8 and len(ids) == 1:
            logits *= 0.9
        return logits


def test_the_end_of_the_context_is_reached(source: Checkpoint) -> None:
    failures = failed(evidence(Drowned(source), source), LOOSEST_FLOAT)
    assert "runtime.context_end" in failures
    assert not failures & {"runtime.nmse", "logits.nmse"}


class Unmasked(StandIn):
    """Its padding is seen."""

    def batch(self, sequences: Sequence[Sequence[int]], steps: int = 0) -> list[np.ndarray]:
        padded = [[self.eos_token_ids[0], *sequence] for sequence in sequences]
        return [logits[1:] for logits in self.reference.logits(padded)]


def test_padding_that_is_seen_is_caught(source: Checkpoint) -> None:
    mistaken = evidence(Unmasked(source), source)
    assert failed(mistaken, LOOSEST_FLOAT) == {"batch"}
    assert "in one left-padded batch" in judged(mistaken)["batch"].detail


def test_a_runtime_of_one_sequence_has_no_batch(source: Checkpoint) -> None:
    class Single(StandIn):
        takes_batches = False

    assert "batch" not in judged(evidence(Single(source), source))


class Broken(StandIn):
    def feed(self, ids: Sequence[int]) -> np.ndarray:
        logits = super().feed(ids)
        logits[:, 7] = np.nan
        return logits


def test_nan_fails_every_comparison(source: Checkpoint) -> None:
    mistaken = evidence(Broken(source), source)
    assert failed(mistaken) >= {
        "finite", "cache", "generation", "runtime.relative_error", "runtime.nmse",
        "runtime.kl_mean", "runtime.context_end", "logits.nmse", "logits.kl_mean",
        "logits.kl_p99", "logits.perplexity_ratio",
    }  # fmt: skip
    assert "not finite" in judged(mistaken)["generation"].detail


class Padded(StandIn):
    """Gives a row no token has more than any other, and so breaks no comparison of real ones."""

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        logits = super().feed(ids)
        logits[:, -1] = logits.max() + 1
        return logits


def test_a_padded_row_must_not_win(source: Checkpoint) -> None:
    assert failed(evidence(Padded(source), source)) == {"padding"}


def test_padded_rows_that_win_in_the_source_are_a_warning(source: Checkpoint) -> None:
    bias = source.decoder.head_bias.read()
    bias[-1] = 9
    same = replace(source, decoder=replace(source.decoder, head_bias=InMemoryTensor(bias)))
    padded = evidence(StandIn(same), same)
    assert not failed(padded)
    assert judged(padded)["padding"].verdict == Verdict.WARNING


def test_padded_rows_may_differ_from_the_source_by_float32_rounding_only(
    source: Checkpoint,
) -> None:
    bias = source.decoder.head_bias.read()
    bias[-1] = 9
    padded = replace(source, decoder=replace(source.decoder, head_bias=InMemoryTensor(bias)))

    class Padded(StandIn):
        factor = 1.0

        def feed(self, ids: Sequence[int]) -> np.ndarray:
            logits = super().feed(ids).copy()
            logits[:, -1] *= self.factor
            return logits

    class Rounded(Padded):
        factor = 1 + 2.0**-20

    class Wrong(Padded):
        factor = 1.001

    assert not failed(evidence(Rounded(padded), padded))
    assert "padding" in failed(evidence(Wrong(padded), padded))


def test_another_end_of_text_context_or_vocabulary_fails(source: Checkpoint) -> None:
    class Old(StandIn):
        eos_token_ids = (2,)
        n_positions = 64

        def feed(self, ids: Sequence[int]) -> np.ndarray:
            return super().feed(ids)[:, : self.model.tokenizer.size]

    mistaken = evidence(Old(source), source)
    assert failed(mistaken) == {"end_of_text", "context", "vocabulary"}
    assert "stops at id 2, the source at 258" in judged(mistaken)["end_of_text"].detail


def test_too_few_logits_are_not_compared(source: Checkpoint) -> None:
    class Cut(StandIn):
        def feed(self, ids: Sequence[int]) -> np.ndarray:
            return super().feed(ids)[:, : self.model.tokenizer.size - 1]

    mistaken = evidence(Cut(source), source)
    assert "vocabulary" in failed(mistaken)
    assert not {"logits.nmse", "runtime.nmse"} & judged(mistaken).keys()


def test_a_tokenizer_that_drops_the_white_space_runs_is_caught(source: Checkpoint) -> None:
    class Plain(StandIn):
        def tokenize(self, text: str) -> list[int]:
            runs = self.model.tokenizer.whitespace_ids
            ids = []
            for token in super().tokenize(text):
                text = self.model.tokenizer.decode([token])
                ids += (
                    self.model.tokenizer.encode(text[0]) * len(text) if token in runs else [token]
                )
            return ids

        def detokenize(self, ids: Sequence[int]) -> str:
            return super().detokenize(ids).strip()

    mistaken = evidence(Plain(source), source)
    assert failed(mistaken) == {"tokenizer.ids", "tokenizer.round_trip"}
    assert "'def hello(x):" in judged(mistaken)["tokenizer.ids"].detail


# Verdicts and thresholds.


def test_a_check_passes_at_its_bound_and_nan_fails() -> None:
    assert at_most("x", 1.0, 1.0).verdict == Verdict.PASS
    assert at_most("x", 1.1, 1.0).verdict == Verdict.FAIL
    assert at_least("x", 1.0, 1.0).verdict == Verdict.PASS
    assert at_least("x", 0.9, 1.0).verdict == Verdict.FAIL
    assert at_most("x", float("nan"), 1.0).verdict == Verdict.FAIL
    assert at_least("x", float("nan"), 1.0).verdict == Verdict.FAIL
    assert at_most("x", None, 1.0).verdict == at_most("x", 1.0, None).verdict == Verdict.INFO
    good, bad = at_most("x", 0.0, 1.0), at_most("x", 2.0, 1.0)
    warned = replace(good, verdict=Verdict.WARNING)
    assert worst_verdict([good, warned]) == Verdict.WARNING
    assert worst_verdict([good, bad, warned]) == Verdict.FAIL
    assert worst_verdict([good, at_most("x", 2.0, None)]) == Verdict.PASS


def test_json_has_no_nan() -> None:
    entry = at_most("x", float("nan"), 1.0, "said").as_dict()
    assert entry["value"] is None
    assert entry["detail"] == "said; value is nan"


def test_thresholds_can_be_replaced_by_name() -> None:
    bounds = thresholds_for("gguf", "Q4_0", overrides={"logits.kl_mean": 0.01, "cache": None})
    assert (bounds["logits.kl_mean"], bounds["cache"]) == (0.01, None)
    assert bounds["logits.nmse"] == load("gguf").thresholds["Q4_0"].nmse
    with pytest.raises(InputError, match=r"'kl': no such bound; there are runtime\.relative"):
        thresholds_for("gguf", "Q4_0", overrides={"kl": 0.1})
    with pytest.raises(InputError, match=r"logits\.kl_mean: 'low' is not a number"):
        thresholds_for("gguf", "Q4_0", overrides={"logits.kl_mean": "low"})  # type: ignore[dict-item]


def test_float16_on_a_gpu_loosens_only_the_checks_its_rounding_affects() -> None:
    exact, half = (
        {check: bound or 0.0 for check, bound in thresholds_for("onnx", "float32", device).items()}
        for device in ("cpu", "cuda")
    )
    assert exact["runtime.nmse"] < half["runtime.nmse"] < 1e-4
    assert exact["cache"] < half["cache"]
    assert half["generation"] == 0
    coarse = thresholds_for("gguf", "Q4_0", "cuda")
    assert coarse == thresholds_for("gguf", "Q4_0")
