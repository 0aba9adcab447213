"""The checks: pure functions from evidence and thresholds to verdicts.

Each is told only what was seen, so a planted mistake is caught for what it does and not because a
manifest or a hash says so. The bounds of the first group come from `thresholds`; the others have
none to choose: one wrong id is a wrong tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cgconvert.verify.evidence import BatchRun, Evidence, ReferenceOutputs, TextRun
from cgconvert.verify.metrics import Loss, measure
from cgconvert.verify.verdict import Check, Verdict, at_least, at_most

__all__ = ["Losses", "run_checks"]

Thresholds = Mapping[str, float | None]


@dataclass(frozen=True)
class Losses:
    """Against the source, against the stored weights, and that at the context's end.

    `source` is None where the artefact has fewer logits than the tokenizer has ids, the others
    also where its weights make no model.
    """

    source: Loss | None
    stored: Loss | None
    tail: Loss | None

    @classmethod
    def of(cls, evidence: Evidence) -> Losses:
        seen, stored = evidence.observed, evidence.stored
        if seen.logits.shape[1] < evidence.allowed:
            return cls(None, None, None)
        return cls(
            measure(evidence.source.logits, seen.logits),
            measure(stored.logits, seen.logits) if stored else None,
            measure(stored.tail, seen.tail) if stored else None,
        )


def run_checks(evidence: Evidence, losses: Losses, thresholds: Thresholds) -> list[Check]:
    """Every check, in the order a reader wants them: what is it, does it run, is it the same."""
    checks = [_ids(evidence), _context(evidence), _vocabulary(evidence), _finite(evidence)]
    if losses.source is not None:
        checks.append(_padding(evidence, losses.source))
        checks += _runtime(evidence, losses, thresholds)
        checks += _logits(evidence, losses.source, thresholds)
        checks.append(_generation(evidence, losses, thresholds))
    checks.append(_cache(evidence, thresholds))
    if evidence.observed.batch is not None:
        checks.append(_batch(evidence.observed.batch, thresholds))
    return checks + _tokenizer(evidence)


def _ids(evidence: Evidence) -> Check:
    found, wanted = evidence.observed.end_of_text, evidence.end_of_text
    detail = "" if found == wanted else f"the artefact stops at id {found}, the source at {wanted}"
    return at_most("end_of_text", float(found != wanted), 0, detail)


def _context(evidence: Evidence) -> Check:
    found, wanted = evidence.observed.n_positions, evidence.n_positions
    detail = f"{found} positions" if found == wanted else f"{found} positions, not {wanted}"
    return at_most("context", float(abs(found - wanted)), 0, detail)


def _vocabulary(evidence: Evidence) -> Check:
    found, wanted = evidence.observed.logits.shape[1], evidence.source.logits.vocabulary
    detail = f"{found} rows" if found == wanted else f"{found} rows of logits, not {wanted}"
    return at_most("vocabulary", float(abs(found - wanted)), 0, detail)


def _finite(evidence: Evidence) -> Check:
    bad = int((~np.isfinite(evidence.observed.logits)).sum())
    detail = f"{bad} logits are NaN or infinite" if bad else ""
    return at_most("finite", float(bad), 0, detail)


def _padding(evidence: Evidence, loss: Loss) -> Check:
    """Rows no token has must not win, unless they win in the reference too (random weights).

    Where the artefact's padded rows lead by more than the reference's do and the noise of two
    logits explains, they are wrong; where they lead in the source itself it is a warning.
    """
    name, size = "padding", evidence.allowed
    seen, source = evidence.observed.logits, evidence.source.logits
    if min(seen.shape[1], source.vocabulary) == size:
        return at_most(name, 0.0, 0, "no padded rows")
    lead = seen[:, size:].max(-1) - seen[:, :size].max(-1)
    wins = lead > 0
    wrong = int((wins & ~(lead <= source.padding - source.logits[:, 0] + 2 * loss.noise)).sum())
    if wrong:
        return at_most(name, float(wrong), 0, f"a padded row wins at {wrong} positions")
    if wins.any():
        detail = f"padded rows win at {int(wins.sum())} positions, as in the source"
        return Check(name, 0.0, 0.0, "<=", Verdict.WARNING, detail)
    return at_most(name, 0.0, 0)


def _runtime(evidence: Evidence, losses: Losses, thresholds: Thresholds) -> list[Check]:
    """Does the runtime compute what is stored: its arithmetic is all that may differ."""
    loss, tail = losses.stored, losses.tail
    if loss is None or tail is None:
        return [Check("runtime.nmse", None, None, "<=", Verdict.INFO, evidence.stored_error)]
    count = len(evidence.observed.tail)
    last = f"the last {count} of {len(evidence.observed.whole)} positions"
    values: list[tuple[str, float, str]] = [
        ("runtime.relative_error", loss.relative_error, f"max |difference| {loss.noise:.3g}"),
        ("runtime.nmse", loss.nmse, ""),
        ("runtime.kl_mean", loss.kl_mean, _worst(evidence, loss)),
        ("runtime.context_end", tail.nmse, last),
    ]
    return [at_most(name, value, thresholds.get(name), text) for name, value, text in values]


def _logits(evidence: Evidence, loss: Loss, thresholds: Thresholds) -> list[Check]:
    """What was lost on the way from the source."""
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
    """Greedy tokens that differ from what the stored weights give after the same ones.

    A difference is excused where the reference's own top two lie closer together than two logits
    can be moved by the noise seen on the prompts: either token is then right.
    """
    name, threshold, seen = "generation", thresholds.get("generation"), evidence.observed
    count = sum(map(len, seen.generated))
    witnessed, loss = evidence.stored or evidence.source, losses.stored or losses.source
    if seen.broken or loss is None:
        return Check(name, None, threshold, "<=", Verdict.FAIL, seen.broken)
    if not count:
        return at_most(name, None, threshold, "the context leaves no room for a token")
    slack = 2 * loss.noise
    differ, excused, first = 0, 0, ""
    for number, (ids, said) in enumerate(zip(seen.generated, witnessed.generated, strict=True), 1):
        for place in np.flatnonzero(np.asarray(ids, dtype=np.int64) != said.ids[:, 0]).tolist():
            margin = float(said.margins[place])
            differ += 1
            excused += margin <= slack
            first = first or (
                f"first at token {place + 1} of prompt {number}: {ids[place]} for "
                f"{int(said.ids[place, 0])}, margin {margin:.3g}, noise {slack:.3g}"
            )
    lost = count - _as(evidence.source, seen.generated)
    detail = f"{count - differ} of {count} tokens as the stored weights give"
    detail += f", {count - lost} as the source"
    if differ:
        detail += f"; {excused} differences within the noise, {first}"
    return at_most(name, float(differ - excused), threshold, detail)


def _as(witnessed: ReferenceOutputs, generated: Sequence[Sequence[int]]) -> int:
    """How many tokens are those that a reference takes."""
    return sum(
        int((np.asarray(ids, dtype=np.int64) == said.ids[:, 0]).sum())
        for ids, said in zip(generated, witnessed.generated, strict=True)
    )


def _cache(evidence: Evidence, thresholds: Thresholds) -> Check:
    worst = max(evidence.observed.caches, key=lambda run: _or_infinity(run.relative_error))
    detail = "; ".join(
        f"{run.name} ({sum(run.pieces)} tokens): {run.relative_error:.2g}"
        for run in evidence.observed.caches
    )
    return at_most("cache", worst.relative_error, thresholds.get("cache"), detail)


def _batch(run: BatchRun, thresholds: Thresholds) -> Check:
    lengths = ", ".join(map(str, run.lengths))
    detail = f"prompts of {lengths} tokens in one left-padded batch, against each alone"
    return at_most("batch", run.relative_error, thresholds.get("batch"), detail)


def _tokenizer(evidence: Evidence) -> list[Check]:
    texts = evidence.observed.texts
    other = [
        f"{run.text[:20]!r}: token {place + 1} is {run.ids[place : place + 3]}, "
        f"not {run.expected[place : place + 3]}"
        for run in texts
        if run.ids != run.expected
        for place in [_first_difference(run.ids, run.expected)]
    ]
    changed = [
        f"character {place + 1} comes back as {run.returned[place : place + 8]!r}, "
        f"not {run.text[place : place + 8]!r}"
        for run in texts
        if run.returned != run.text
        for place in [_first_difference(run.returned, run.text)]
    ]
    return [
        _all_texts("tokenizer.ids", other, texts),
        _all_texts("tokenizer.round_trip", changed, texts),
    ]


def _all_texts(name: str, faults: Sequence[str], texts: Sequence[TextRun]) -> Check:
    detail = f"{len(texts)} texts"
    if faults:
        detail = f"{len(faults)} of {detail}; {faults[0]}"
    return at_most(name, float(len(faults)), 0, detail)


def _first_difference(left: Sequence[object], right: Sequence[object]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))


def _worst(evidence: Evidence, loss: Loss) -> str:
    worst = int(np.argmax(np.where(np.isnan(loss.kl), np.inf, loss.kl)))
    return f"worst {loss.kl[worst]:.3g} at {_place(evidence.observed.sequences, worst)}"


def _place(sequences: tuple[tuple[int, ...], ...], position: int) -> str:
    for number, sequence in enumerate(sequences, 1):
        if position < len(sequence):
            return f"token {position + 1} of prompt {number}"
        position -= len(sequence)
    raise IndexError(position)


def _or_infinity(value: float) -> float:
    return float("inf") if np.isnan(value) else value
