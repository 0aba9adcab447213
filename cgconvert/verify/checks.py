"""The checks of what an artefact did: pure functions from evidence and thresholds to verdicts.

They see nothing but the evidence, so a planted mistake is caught for what it does and not because a
manifest or a hash says so. Checks of arithmetic take their bounds from `thresholds`; the others
have none to choose: one wrong id is a wrong tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cgconvert.verify.evidence import Evidence, ReferenceOutputs
from cgconvert.verify.metrics import Loss, measure
from cgconvert.verify.observe import BatchRun, TokenizerRun
from cgconvert.verify.verdict import Check, Verdict, at_least, at_most

__all__ = ["Losses", "run_checks"]

Thresholds = Mapping[str, float | None]


@dataclass(frozen=True)
class Losses:
    """How far the artefact's logits are from the references'.

    Attributes:
        source: From the reference with the source's weights.
        stored: From the reference with the artefact's own weights.
        context_end: From the same, at the end of the context.

    All are None where the artefact has fewer logits than the tokenizer has ids; the last two also
    where its weights make no model.
    """

    source: Loss | None
    stored: Loss | None
    context_end: Loss | None

    @classmethod
    def of(cls, evidence: Evidence) -> Losses:
        """Measure them."""
        observed, stored = evidence.observed, evidence.stored
        if observed.logits.shape[1] < evidence.allowed:
            return cls(None, None, None)
        return cls(
            measure(evidence.source.logits, observed.logits),
            measure(stored.logits, observed.logits) if stored else None,
            measure(stored.context_end, observed.context_end_logits) if stored else None,
        )


def run_checks(evidence: Evidence, losses: Losses, thresholds: Thresholds) -> list[Check]:
    """All checks, in the order of a reader's questions: what is it, does it run, is it the same?"""
    checks = [_end_of_text(evidence), _context(evidence), _vocabulary(evidence), _finite(evidence)]
    if losses.source is not None:
        checks.append(_padding(evidence, losses.source))
        checks += _runtime(evidence, losses, thresholds)
        checks += _logits(evidence, losses.source, thresholds)
        checks.append(_generation(evidence, losses, thresholds))
    checks.append(_cache(evidence, thresholds))
    if evidence.observed.batch_run is not None:
        checks.append(_batch(evidence.observed.batch_run, thresholds))
    return checks + _tokenizer(evidence)


def _end_of_text(evidence: Evidence) -> Check:
    actual, expected = evidence.observed.end_of_text, evidence.end_of_text
    detail = f"the artefact stops at id {actual}, the source at {expected}"
    return at_most(
        "end_of_text", float(actual != expected), 0, detail if actual != expected else ""
    )


def _context(evidence: Evidence) -> Check:
    actual, expected = evidence.observed.n_positions, evidence.n_positions
    detail = f"{actual} positions"
    if actual != expected:
        detail += f", not {expected}"
    return at_most("context", float(abs(actual - expected)), 0, detail)


def _vocabulary(evidence: Evidence) -> Check:
    actual, expected = evidence.observed.logits.shape[1], evidence.source.logits.vocabulary
    detail = f"{actual} rows"
    if actual != expected:
        detail += f" of logits, not {expected}"
    return at_most("vocabulary", float(abs(actual - expected)), 0, detail)


def _finite(evidence: Evidence) -> Check:
    count = int((~np.isfinite(evidence.observed.logits)).sum())
    detail = f"{count} logits are NaN or infinite" if count else ""
    return at_most("finite", float(count), 0, detail)


def _padding(evidence: Evidence, loss: Loss) -> Check:
    """A padded row (one that no token has) must not have the largest logit.

    The artefact is wrong where its best padded row leads by more than the reference's does plus
    the noise of two logits. Where a padded row leads in the source itself, as random weights may
    have it, it is a warning.
    """
    name, size = "padding", evidence.allowed
    logits, source = evidence.observed.logits, evidence.source.logits
    if min(logits.shape[1], source.vocabulary) == size:
        return at_most(name, 0.0, 0, "no padded rows")
    lead = logits[:, size:].max(-1) - logits[:, :size].max(-1)
    source_lead = source.padding - source.logits[:, 0]
    wins = lead > 0
    count = int((wins & ~(lead <= source_lead + 2 * loss.noise)).sum())
    if count:
        return at_most(name, float(count), 0, f"a padded row wins at {count} positions")
    if wins.any():
        detail = f"padded rows win at {int(wins.sum())} positions, as in the source"
        return Check(name, 0.0, 0.0, "<=", Verdict.WARNING, detail)
    return at_most(name, 0.0, 0)


def _runtime(evidence: Evidence, losses: Losses, thresholds: Thresholds) -> list[Check]:
    """Whether the runtime computes what is stored: only its arithmetic may differ."""
    loss, context_end, observed = losses.stored, losses.context_end, evidence.observed
    if loss is None or context_end is None:
        return [Check("runtime.nmse", None, None, "<=", Verdict.INFO, evidence.stored_error)]
    count = len(observed.context_end_logits)
    last = f"the last {count} of {len(observed.full_context)} positions"
    values: list[tuple[str, float, str]] = [
        ("runtime.relative_error", loss.relative_error, f"max |difference| {loss.noise:.3g}"),
        ("runtime.nmse", loss.nmse, ""),
        ("runtime.kl_mean", loss.kl_mean, _worst(evidence, loss)),
        ("runtime.context_end", context_end.nmse, last),
    ]
    return [at_most(name, value, thresholds.get(name), text) for name, value, text in values]


def _logits(evidence: Evidence, loss: Loss, thresholds: Thresholds) -> list[Check]:
    """How much the artefact lost of the source."""
    error = loss.perplexity_error
    values: list[tuple[Callable[..., Check], str, float | None, str]] = [
        (at_most, "logits.nmse", loss.nmse, ""),
        (at_most, "logits.kl_mean", loss.kl_mean, ""),
        (at_most, "logits.kl_p99", loss.kl_p99, _worst(evidence, loss)),
        (at_least, "logits.top1", loss.top1, ""),
        (at_least, "logits.top1_sure", loss.top1_sure,
         f"{loss.sure} positions where the reference gives p >= 2/3"),
        (at_least, "logits.top5", loss.top5, ""),
        (at_most, "logits.perplexity_ratio", loss.perplexity_ratio,
         "" if error is None else f"standard error {error:.2g}"),
    ]  # fmt: skip
    return [judge(name, value, thresholds.get(name), text) for judge, name, value, text in values]


def _generation(evidence: Evidence, losses: Losses, thresholds: Thresholds) -> Check:
    """Greedy tokens that differ from what the stored weights give after the same tokens.

    A difference is excused where the reference's best two logits lie closer together than the
    noise seen on the prompts can move two logits: either token is then right.
    """
    name, threshold = "generation", thresholds.get("generation")
    observed, loss = evidence.observed, losses.stored or losses.source
    count = sum(map(len, observed.generated))
    if observed.generation_error or loss is None:
        return Check(name, None, threshold, "<=", Verdict.FAIL, observed.generation_error)
    if not count:
        return at_most(name, None, threshold, "the context leaves no room for a token")
    reference = evidence.stored or evidence.source
    noise = 2 * loss.noise
    differ, excused, first = 0, 0, ""
    pairs = zip(observed.generated, reference.generated, strict=True)
    for prompt, (ids, expected) in enumerate(pairs, 1):
        best = expected.ids[:, 0]
        for place in np.flatnonzero(np.asarray(ids, dtype=np.int64) != best).tolist():
            margin = float(expected.margins[place])
            differ += 1
            excused += margin <= noise
            first = first or (
                f"first at token {place + 1} of prompt {prompt}: {ids[place]} for "
                f"{int(best[place])}, margin {margin:.3g}, noise {noise:.3g}"
            )
    detail = f"{count - differ} of {count} tokens as the stored weights give"
    detail += f", {_count_equal(evidence.source, observed.generated)} as the source"
    if differ:
        detail += f"; {excused} differences within the noise, {first}"
    return at_most(name, float(differ - excused), threshold, detail)


def _count_equal(reference: ReferenceOutputs, generated: Sequence[Sequence[int]]) -> int:
    """How many generated tokens are the reference's best."""
    return sum(
        int((np.asarray(ids, dtype=np.int64) == expected.ids[:, 0]).sum())
        for ids, expected in zip(generated, reference.generated, strict=True)
    )


def _cache(evidence: Evidence, thresholds: Thresholds) -> Check:
    runs = evidence.observed.cache_runs
    worst = max(runs, key=lambda run: _nan_as_infinity(run.relative_error))
    detail = "; ".join(
        f"{run.name} ({sum(run.pieces)} tokens): {run.relative_error:.2g}" for run in runs
    )
    return at_most("cache", worst.relative_error, thresholds.get("cache"), detail)


def _batch(run: BatchRun, thresholds: Thresholds) -> Check:
    lengths = ", ".join(map(str, run.lengths))
    detail = f"prompts of {lengths} tokens in one left-padded batch, against each alone"
    return at_most("batch", run.relative_error, thresholds.get("batch"), detail)


def _tokenizer(evidence: Evidence) -> list[Check]:
    runs = evidence.observed.tokenizer_runs
    wrong_ids = [
        f"{run.text[:20]!r}: token {place + 1} is {run.ids[place : place + 3]}, "
        f"not {run.expected[place : place + 3]}"
        for run in runs
        if run.ids != run.expected
        for place in [_first_difference(run.ids, run.expected)]
    ]
    wrong_texts = [
        f"character {place + 1} comes back as {run.decoded[place : place + 8]!r}, "
        f"not {run.text[place : place + 8]!r}"
        for run in runs
        if run.decoded != run.text
        for place in [_first_difference(run.decoded, run.text)]
    ]
    return [
        _text_check("tokenizer.ids", wrong_ids, runs),
        _text_check("tokenizer.round_trip", wrong_texts, runs),
    ]


def _text_check(name: str, faults: Sequence[str], runs: Sequence[TokenizerRun]) -> Check:
    """A check that passes where no text has a fault; its detail has the first one."""
    detail = f"{len(runs)} texts"
    if faults:
        detail = f"{len(faults)} of {detail}; {faults[0]}"
    return at_most(name, float(len(faults)), 0, detail)


def _first_difference(left: Sequence[object], right: Sequence[object]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))


def _worst(evidence: Evidence, loss: Loss) -> str:
    """The largest divergence and where it is; NaN is the largest."""
    worst = int(np.argmax(np.where(np.isnan(loss.kl), np.inf, loss.kl)))
    return f"worst {loss.kl[worst]:.3g} at {_token_name(evidence.observed.sequences, worst)}"


def _token_name(sequences: tuple[tuple[int, ...], ...], position: int) -> str:
    """A position among all sequences, one after the other, as "token 3 of prompt 2"."""
    for number, sequence in enumerate(sequences, 1):
        if position < len(sequence):
            return f"token {position + 1} of prompt {number}"
        position -= len(sequence)
    raise IndexError(position)


def _nan_as_infinity(value: float) -> float:
    return float("inf") if np.isnan(value) else value
