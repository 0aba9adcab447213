"""The checks of what an artefact did: pure functions of evidence and bounds.

They see nothing but the evidence, so a mistake is caught for what it does and not because a
manifest or a hash says so. Checks of arithmetic take their bounds from `thresholds`; the bounds of
the others are fixed here, as a single wrong id makes a wrong tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cgconvert.verification.evidence import Evidence, ReferenceOutputs
from cgconvert.verification.metrics import LogitComparison, first_difference, measure
from cgconvert.verification.observe import BatchRun, FloatActivationRun
from cgconvert.verification.thresholds import Check, Verdict, at_least, at_most

__all__ = ["LogitComparisons", "run_checks"]

Thresholds = Mapping[str, float | None]
"""Bounds by name of check; a check whose bound is None is reported and cannot fail."""

GRAPH_BOUNDS: Mapping[str, float] = {"float32": 1e-10, "float16": 5e-6}
"""Bounds of runtime.graph by the type of the activations; float16's is that of an unquantized
float16 graph. Seen in float32: 1.8e-11, of 6B's head with sharp attention (python -m
tests.verification.false_alarms --seeds 2 --heads 8 --vocabulary 6000 --trained)."""


@dataclass(frozen=True)
class LogitComparisons:
    """How far the artefact's logits are from those of the references.

    Attributes:
        with_source: On all sequences, from the reference with the source's weights.
        with_stored: On all sequences, from the reference with the artefact's own weights.
        context_end: At the end of the context, from the reference with the artefact's own weights.

    All are None if the artefact has fewer logits than the source's tokenizer has ids; the last two
    also if the artefact's weights make no model, and the last in a quick verification.
    """

    with_source: LogitComparison | None
    with_stored: LogitComparison | None
    context_end: LogitComparison | None

    @classmethod
    def of(cls, evidence: Evidence) -> LogitComparisons:
        """Compare the artefact's logits in `evidence` with those of the references."""
        observation, stored = evidence.observation, evidence.stored_outputs
        if not evidence.has_all_logits:
            return cls(None, None, None)
        has_end = stored is not None and len(observation.context_end_logits)
        return cls(
            measure(evidence.source_outputs.logits, observation.logits),
            measure(stored.logits, observation.logits) if stored else None,
            measure(stored.context_end, observation.context_end_logits)
            if stored and has_end
            else None,
        )


def run_checks(
    evidence: Evidence, comparisons: LogitComparisons, thresholds: Thresholds
) -> list[Check]:
    """Make all checks, in the order of a reader's questions: what is it, does it run, is it equal?

    A check that has nothing to compare is left out. So are the checks of what the type lost if
    nothing was generated: a quick verification has one prompt, on which they say little.
    """
    checks = [
        _check_end_of_text(evidence),
        _check_context(evidence),
        _check_vocabulary(evidence),
        _check_finite(evidence),
    ]
    if comparisons.with_source is not None:
        checks.append(_check_padding(evidence, comparisons.with_source))
        checks += _check_runtime(evidence, comparisons, thresholds)
        if evidence.observation.openings:
            checks += _check_logits(evidence, comparisons.with_source, thresholds)
            checks.append(_check_generation(evidence, comparisons, thresholds))
    if evidence.observation.cache_runs:
        checks.append(_check_cache(evidence, thresholds))
    if evidence.observation.batch_run is not None:
        checks.append(_check_batch(evidence.observation.batch_run, thresholds))
    checks += _check_tokenizer(evidence)
    if evidence.float_activation_run is not None and evidence.stored_outputs is not None:
        checks.append(_check_graph(evidence.float_activation_run, evidence.stored_outputs))
    return checks


def _check_end_of_text(evidence: Evidence) -> Check:
    """Check that the artefact stops at the source's ids; the value counts those that differ.

    The first id is the tokenizer's own, with which a runtime ends texts too.
    """
    actual, expected = evidence.observation.eos_token_ids, evidence.eos_token_ids
    differing = set(actual) ^ set(expected)
    count = max(len(differing), int(actual[:1] != expected[:1]))
    actual_ids, expected_ids = (", ".join(map(str, ids)) for ids in (actual, expected))
    detail = f"the artefact stops at id {actual_ids}, the source at {expected_ids}"
    return at_most("end_of_text", float(count), 0, detail if count else "")


def _check_context(evidence: Evidence) -> Check:
    """Check that the artefact's context length is the source's; the value is the difference."""
    actual, expected = evidence.observation.n_positions, evidence.n_positions
    detail = f"{actual} positions"
    if actual != expected:
        detail += f", not {expected}"
    return at_most("context", float(abs(actual - expected)), 0, detail)


def _check_vocabulary(evidence: Evidence) -> Check:
    """Check that the artefact gives as many logits as the source; the value is the difference."""
    actual, expected = (
        evidence.observation.logits.shape[1],
        evidence.source_outputs.logits.vocab_size,
    )
    detail = f"{actual} rows"
    if actual != expected:
        detail += f" of logits, not {expected}"
    return at_most("vocabulary", float(abs(actual - expected)), 0, detail)


def _check_finite(evidence: Evidence) -> Check:
    """Check that no logit is NaN or infinite; the value is the number of those that are."""
    count = int((~np.isfinite(evidence.observation.logits)).sum())
    detail = f"{count} logits are NaN or infinite" if count else ""
    return at_most("finite", float(count), 0, detail)


PADDING_ROUNDING = 1e-5
"""The relative error that float32 arithmetic leaves in a logit, as the float32 types' bound."""


def _check_padding(evidence: Evidence, comparison: LogitComparison) -> Check:
    """Check that no padded row wins: has the largest logit although the tokenizer has no such id.

    The value is the number of positions at which a padded row of the artefact wins, and by more
    than one of the reference does plus the error of the two logits. If padded rows win only as in
    the source itself, which can happen in a model of random weights, the check is a warning.
    """
    name, size = "padding", evidence.tokenizer_size
    logits, source = evidence.observation.logits, evidence.source_outputs.logits
    if min(logits.shape[1], source.vocab_size) == size:
        return at_most(name, 0.0, 0, "no padded rows")
    lead = logits[:, size:].max(-1) - logits[:, :size].max(-1)
    source_lead = source.padding_logits - source.logits[:, 0]
    wins = lead > 0
    # max_difference is over the tokenizer's logits alone; a padded row of the same weights differs
    # by float32 rounding too, in proportion to its own size.
    error = 2 * comparison.max_difference + PADDING_ROUNDING * np.abs(source.padding_logits)
    count = int((wins & ~(lead <= source_lead + error)).sum())
    if count:
        return at_most(name, float(count), 0, f"a padded row wins at {count} positions")
    if wins.any():
        detail = f"padded rows win at {int(wins.sum())} positions, as in the source"
        return Check(name, 0.0, 0.0, "<=", Verdict.WARNING, detail)
    return at_most(name, 0.0, 0)


def _check_runtime(
    evidence: Evidence, comparisons: LogitComparisons, thresholds: Thresholds
) -> list[Check]:
    """Check that the runtime computes what the artefact stores: only its arithmetic may differ."""
    comparison, context_end = comparisons.with_stored, comparisons.context_end
    observation = evidence.observation
    if comparison is None:
        return [Check("runtime.nmse", None, None, "<=", Verdict.INFO, evidence.stored_error)]
    difference = f"max |difference| {comparison.max_difference:.3g}"
    count = len(observation.context_end_logits)
    last_positions = f"the last {count} of {len(observation.full_context)} positions"
    values: list[tuple[str, float, str]] = [
        ("runtime.relative_error", comparison.relative_error, difference),
        ("runtime.nmse", comparison.nmse, ""),
        ("runtime.kl_mean", comparison.kl_mean, _worst_position(evidence, comparison)),
    ]
    if context_end is not None:
        values.append(("runtime.context_end", context_end.nmse, last_positions))
    return [at_most(name, value, thresholds.get(name), detail) for name, value, detail in values]


def _check_graph(run: FloatActivationRun, stored: ReferenceOutputs) -> Check:
    """Check that the artefact computes what it stores if activations are not quantized.

    The value is the NMSE on the prompts. It shows mistakes in the wiring. MatMulNBits at accuracy
    level 4 rounds activations to 8 bits: an NMSE of 3e-5 to 4e-4, which hides a bias of the wrong
    layer (1.6e-5 in the embedded model). The same nodes computed in float32 have as small an error
    as any float32 graph.
    """
    comparison = measure(stored.logits[: len(run.logits)], run.logits)
    difference = f"max |difference| {comparison.max_difference:.3g}"
    detail = f"its matrices computed in float32: {difference}"
    return at_most("runtime.graph", comparison.nmse, GRAPH_BOUNDS[run.activations], detail)


def _check_logits(
    evidence: Evidence, comparison: LogitComparison, thresholds: Thresholds
) -> list[Check]:
    """Check how much the artefact's logits lost of the source's."""
    ratio_error, ratio = comparison.perplexity_error, "logits.perplexity_ratio"
    values: list[tuple[Callable[..., Check], str, float | None, str]] = [
        (at_most, "logits.nmse", comparison.nmse, ""),
        (at_most, "logits.kl_mean", comparison.kl_mean, ""),
        (at_most, "logits.kl_p99", comparison.kl_p99, _worst_position(evidence, comparison)),
        (at_least, "logits.top1", comparison.top1, ""),
        (at_least, "logits.top1_sure", comparison.top1_sure,
         f"{comparison.sure_positions} positions where the reference gives p >= 2/3"),
        (at_least, "logits.top5", comparison.top5, ""),
    ]  # fmt: skip
    checks = [
        at_bound(name, value, thresholds.get(name), detail)
        for at_bound, name, value, detail in values
    ]
    highest = thresholds.get(ratio)
    # Rounding changes a likelihood by chance, so it gains at most about what it may lose.
    lowest = 1 / highest if highest is not None and highest >= 1 else None
    detail = "" if ratio_error is None else f"standard error {ratio_error:.2g}"
    return [*checks, at_most(ratio, comparison.perplexity_ratio, highest, detail, lowest)]


def _check_generation(
    evidence: Evidence, comparisons: LogitComparisons, thresholds: Thresholds
) -> Check:
    """Check that greedy tokens are those that the stored weights give after the same tokens.

    The value is the number of tokens that differ and are not excused. A difference is excused if
    the margin between the reference's best two logits is within the noise: twice the largest error
    of a logit on the prompts, which may raise one of the two and lower the other. Then either token
    is right.
    """
    name, threshold = "generation", thresholds.get("generation")
    observation = evidence.observation
    comparison = comparisons.with_stored or comparisons.with_source
    count = sum(map(len, observation.generated))
    if observation.generation_error or comparison is None:
        return Check(name, None, threshold, "<=", Verdict.FAIL, observation.generation_error)
    if not count:
        return at_most(name, None, threshold, "the context leaves no room for a token")
    reference = evidence.stored_outputs or evidence.source_outputs
    noise = 2 * comparison.max_difference
    differing, excused, first = 0, 0, ""
    pairs = zip(observation.generated, reference.generated, strict=True)
    for prompt, (ids, expected) in enumerate(pairs, 1):
        best = expected.ids[:, 0]
        for position in np.flatnonzero(np.asarray(ids, dtype=np.int64) != best).tolist():
            margin = float(expected.margins[position])
            differing += 1
            excused += margin <= noise
            first = first or (
                f"first at token {position + 1} of prompt {prompt}: {ids[position]} for "
                f"{int(best[position])}, margin {margin:.3g}, noise {noise:.3g}"
            )
    detail = f"{count - differing} of {count} tokens as the stored weights give"
    detail += f", {_count_equal(evidence.source_outputs, observation.generated)} as the source"
    if differing:
        detail += f"; {excused} differences within the noise, {first}"
    return at_most(name, float(differing - excused), threshold, detail)


def _count_equal(reference: ReferenceOutputs, generated: Sequence[Sequence[int]]) -> int:
    """Count the generated tokens that are the reference's best at their position."""
    return sum(
        int((np.asarray(ids, dtype=np.int64) == expected.ids[:, 0]).sum())
        for ids, expected in zip(generated, reference.generated, strict=True)
    )


def _check_cache(evidence: Evidence, thresholds: Thresholds) -> Check:
    """Check that a sequence fed in pieces through the cache gives the logits of a full pass."""
    runs = evidence.observation.cache_runs
    worst = max(runs, key=lambda run: float(_nan_as_infinity(run.relative_error)))
    detail = "; ".join(
        f"{run.name} ({sum(run.pieces)} tokens): {run.relative_error:.2g}" for run in runs
    )
    return at_most("cache", worst.relative_error, thresholds.get("cache"), detail)


def _check_batch(run: BatchRun, thresholds: Thresholds) -> Check:
    """Check that sequences in a padded batch give the logits that each gives alone."""
    lengths = ", ".join(map(str, run.lengths))
    detail = f"prompts of {lengths} tokens in one left-padded batch, against each alone"
    return at_most("batch", run.relative_error, thresholds.get("batch"), detail)


def _check_tokenizer(evidence: Evidence) -> list[Check]:
    """Check that the artefact's tokenizer gives the source's ids, and decodes them to the text."""
    runs = evidence.observation.tokenizer_runs
    wrong_ids = [
        f"{run.text[:20]!r}: token {position + 1} is {run.ids[position : position + 3]}, "
        f"not {run.expected[position : position + 3]}"
        for run in runs
        if run.ids != run.expected
        for position in [first_difference(run.ids, run.expected)]
    ]
    wrong_texts = [
        f"character {position + 1} comes back as {run.decoded[position : position + 8]!r}, "
        f"not {run.text[position : position + 8]!r}"
        for run in runs
        if run.decoded != run.text
        for position in [first_difference(run.decoded, run.text)]
    ]
    return [
        _text_check("tokenizer.ids", wrong_ids, len(runs)),
        _text_check("tokenizer.round_trip", wrong_texts, len(runs)),
    ]


def _text_check(name: str, differences: Sequence[str], text_count: int) -> Check:
    """Make a check that passes if no text differs; its detail has the first difference."""
    detail = f"{text_count} texts"
    if differences:
        detail = f"{len(differences)} of {detail}; {differences[0]}"
    return at_most(name, float(len(differences)), 0, detail)


def _worst_position(evidence: Evidence, comparison: LogitComparison) -> str:
    """Describe the largest KL divergence and where it is, as "worst 0.1 at token 3 of prompt 2".

    NaN counts as the largest.
    """
    index = int(np.argmax(_nan_as_infinity(comparison.kl)))
    token = _token_name(evidence.observation.sequences, index)
    return f"worst {comparison.kl[index]:.3g} at {token}"


def _token_name(sequences: tuple[tuple[int, ...], ...], position: int) -> str:
    """Name a position among all sequences, one after the other, as "token 3 of prompt 2"."""
    for number, sequence in enumerate(sequences, 1):
        if position < len(sequence):
            return f"token {position + 1} of prompt {number}"
        position -= len(sequence)
    raise IndexError(position)


def _nan_as_infinity(values: np.ndarray | float) -> np.ndarray:
    """Replace NaN by infinity, so that a maximum finds it."""
    return np.where(np.isnan(values), np.inf, values)
