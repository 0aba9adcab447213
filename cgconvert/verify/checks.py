"""The checks: pure functions from evidence and thresholds to verdicts.

Each is told only what was seen, so a planted mistake is caught for what it does and not because a
manifest or a hash says so. The bounds of the first group come from `thresholds`; the others have
none to choose: one wrong id is a wrong tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cgconvert.verify.evidence import Evidence, Generation, TextRun
from cgconvert.verify.metrics import Loss, measure, noise
from cgconvert.verify.verdict import Check, Verdict, at_least, at_most

__all__ = ["run_checks"]

Thresholds = Mapping[str, float | None]

SURE = 2 / 3
"""Probability from which the reference is sure of a token: twice as likely as any other."""


def run_checks(evidence: Evidence, thresholds: Thresholds) -> list[Check]:
    """Every check, in the order a reader wants them: what is it, does it run, is it the same."""
    checks = [_ids(evidence), _context(evidence), _vocabulary(evidence), _finite(evidence)]
    if evidence.observed.logits.shape[1] >= evidence.allowed:
        checks.append(_padding(evidence))
        checks += _logits(evidence, thresholds)
        checks.append(_generation(evidence, thresholds))
    checks += [_cache(evidence, thresholds), *_tokenizer(evidence)]
    return checks


def _ids(evidence: Evidence) -> Check:
    found, wanted = evidence.observed.end_of_text, evidence.end_of_text
    detail = "" if found == wanted else f"the artefact stops at id {found}, the source at {wanted}"
    return at_most("end_of_text", float(found != wanted), 0, detail)


def _context(evidence: Evidence) -> Check:
    found, wanted = evidence.observed.n_positions, evidence.n_positions
    detail = f"{found} positions" if found == wanted else f"{found} positions, not {wanted}"
    return at_most("context", float(abs(found - wanted)), 0, detail)


def _vocabulary(evidence: Evidence) -> Check:
    found, wanted = evidence.observed.logits.shape[1], evidence.reference.shape[1]
    detail = f"{found} rows" if found == wanted else f"{found} rows of logits, not {wanted}"
    return at_most("vocabulary", float(abs(found - wanted)), 0, detail)


def _finite(evidence: Evidence) -> Check:
    bad = int((~np.isfinite(evidence.observed.logits)).sum())
    detail = f"{bad} logits are NaN or infinite" if bad else ""
    return at_most("finite", float(bad), 0, detail)


def _padding(evidence: Evidence) -> Check:
    """Rows no token has must not win, unless they win in the reference too (random weights).

    Where the artefact's padded rows lead by more than the reference's do and the noise of two
    logits explains, they are wrong; where they lead in the source itself it is a warning.
    """
    name, size = "padding", evidence.allowed
    if min(evidence.observed.logits.shape[1], evidence.reference.shape[1]) == size:
        return at_most(name, 0.0, 0, "no padded rows")
    lead, expected = (
        rows[:, size:].max(-1) - rows[:, :size].max(-1)
        for rows in (evidence.observed.logits, evidence.reference)
    )
    slack = 2 * noise(evidence.reference[:, :size], evidence.observed.logits[:, :size])
    wins = lead > 0
    wrong = int((wins & ~(lead <= expected + slack)).sum())
    if wrong:
        return at_most(name, float(wrong), 0, f"a padded row wins at {wrong} positions")
    if wins.any():
        detail = f"padded rows win at {int(wins.sum())} positions, as in the source"
        return Check(name, 0.0, 0.0, "<=", Verdict.WARNING, detail)
    return at_most(name, 0.0, 0)


def _logits(evidence: Evidence, thresholds: Thresholds) -> list[Check]:
    size, seen = evidence.allowed, evidence.observed
    reference, candidate = evidence.reference[:, :size], seen.logits[:, :size]
    loss = measure(reference, candidate, seen.sequences)
    sure, share = _sure(reference, candidate)
    worst = int(np.argmax(np.where(np.isnan(loss.kl), np.inf, loss.kl)))
    details = {
        "logits.relative_error": f"max |difference| {loss.noise:.3g}",
        "logits.kl_p99": f"worst {loss.kl[worst]:.3g} at {_place(seen.sequences, worst)}",
        "logits.top1_sure": f"{sure} positions where the reference gives p >= 2/3",
        "logits.perplexity_ratio": f"standard error {loss.perplexity_error:.2g}",
    }
    values: list[tuple[Callable[..., Check], str, float | None]] = [
        (at_most, "logits.relative_error", loss.relative_error),
        (at_most, "logits.nmse", loss.nmse),
        (at_most, "logits.kl_mean", loss.kl_mean),
        (at_most, "logits.kl_p99", loss.kl_p99),
        (at_least, "logits.top1", loss.top1),
        (at_least, "logits.top1_sure", share),
        (at_least, "logits.top5", loss.top5),
        (at_most, "logits.perplexity_ratio", _predicted(loss)),
    ]
    return [
        judge(name, value, thresholds.get(name), details.get(name, ""))
        for judge, name, value in values
    ]


def _cache(evidence: Evidence, thresholds: Thresholds) -> Check:
    worst = max(evidence.observed.caches, key=lambda run: _or_infinity(run.relative_error))
    detail = "; ".join(
        f"{run.name} ({sum(run.pieces)} tokens): {run.relative_error:.2g}"
        for run in evidence.observed.caches
    )
    return at_most("cache", worst.relative_error, thresholds.get("cache"), detail)


def _generation(evidence: Evidence, thresholds: Thresholds) -> Check:
    """Greedy tokens that differ from what the reference takes after the same ones.

    A difference is excused where the reference's own top two lie closer together than two logits
    can be moved by the noise seen on the prompts: either token is then right.
    """
    name, threshold = "generation", thresholds.get("generation")
    count = sum(len(run.ids) for run in evidence.generations)
    if evidence.observed.broken:
        return Check(name, None, threshold, "<=", Verdict.FAIL, evidence.observed.broken)
    if not count:
        return at_most(name, None, threshold, "the context leaves no room for a token")
    size = evidence.allowed
    slack = 2 * noise(evidence.reference[:, :size], evidence.observed.logits[:, :size])
    differ, excused, first = 0, 0, ""
    for number, run in enumerate(evidence.generations, 1):
        for place in _differences(run):
            margin = float(run.reference.margins[place])
            differ += 1
            excused += margin <= slack
            first = first or (
                f"first at token {place + 1} of prompt {number}: {run.ids[place]} for "
                f"{int(run.reference.ids[place])}, margin {margin:.3g}, noise {slack:.3g}"
            )
    detail = f"{count - differ} of {count} tokens as the reference"
    if differ:
        detail += f", {excused} differences within the noise; {first}"
    value = float(differ - excused) if threshold is not None else float(differ)
    return at_most(name, value, threshold, detail)


def _tokenizer(evidence: Evidence) -> list[Check]:
    texts = evidence.observed.texts
    other = [run for run in texts if run.ids != run.expected]
    changed = [run for run in texts if run.returned != run.text]
    return [
        at_most("tokenizer.ids", float(len(other)), 0, _first_id(other, len(texts))),
        at_most("tokenizer.round_trip", float(len(changed)), 0, _first_change(changed, len(texts))),
    ]


def _first_id(runs: Sequence[TextRun], count: int) -> str:
    if not runs:
        return f"{count} texts"
    run = runs[0]
    place = _first_difference(run.ids, run.expected)
    return (
        f"{len(runs)} of {count} texts; {run.text[:20]!r}: token {place + 1} is "
        f"{run.ids[place : place + 3]}, not {run.expected[place : place + 3]}"
    )


def _first_change(runs: Sequence[TextRun], count: int) -> str:
    if not runs:
        return f"{count} texts"
    run = runs[0]
    place = _first_difference(run.returned, run.text)
    return (
        f"{len(runs)} of {count} texts; character {place + 1} comes back as "
        f"{run.returned[place : place + 8]!r}, not {run.text[place : place + 8]!r}"
    )


def _first_difference(left: Sequence[object], right: Sequence[object]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))


def _differences(run: Generation) -> list[int]:
    return np.flatnonzero(np.asarray(run.ids) != run.reference.ids).tolist()


def _sure(reference: np.ndarray, candidate: np.ndarray) -> tuple[int, float | None]:
    """How many positions the reference is sure at, and the share the candidate picks alike."""
    best = reference.argmax(-1)
    top = reference.max(-1, keepdims=True)
    sure = np.exp(reference - top).sum(-1) <= 1 / SURE
    if not sure.any():
        return 0, None
    return int(sure.sum()), float((candidate.argmax(-1) == best)[sure].mean())


def _predicted(loss: Loss) -> float | None:
    """NaN because no token was predicted is no value; NaN out of NaN logits is a failure."""
    if np.isnan(loss.perplexity_ratio) and not np.isnan(loss.noise):
        return None
    return loss.perplexity_ratio


def _place(sequences: tuple[tuple[int, ...], ...], position: int) -> str:
    for number, sequence in enumerate(sequences, 1):
        if position < len(sequence):
            return f"token {position + 1} of prompt {number}"
        position -= len(sequence)
    raise IndexError(position)


def _or_infinity(value: float) -> float:
    return float("inf") if np.isnan(value) else value
