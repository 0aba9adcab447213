"""What a verification saw: the artefact's own numbers and the references', gathered once.

The artefact runs first, alone; then one pass of each reference covers the prompts and everything
the artefact generated. There are two: the source, and what the artefact itself has stored. The
first says what was lost, the second whether the runtime computes what the file says. Nothing is
judged here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cgconvert.errors import VerificationError
from cgconvert.runtimes.generate import generate
from cgconvert.runtimes.runtime import Runtime
from cgconvert.stream.progress import Progress
from cgconvert.tokenizer import Tokenizer
from cgconvert.verify.distribution import Distribution
from cgconvert.verify.metrics import relative_error

__all__ = [
    "BatchRun", "CacheRun", "Evidence", "Observed", "TextRun", "Witness", "Witnessed", "observe",
    "testify",
]  # fmt: skip

STEPS = 16
"""Single tokens after a prefill: enough for a cache that forgets or misplaces one to show."""

BATCHED = 4
"""Sequences in the padded batch."""

BATCH_STEPS = 4
"""Single tokens that the padded batch decodes after its prefill."""

CHUNK = 256
"""Tokens at a time on the way to the context's end."""


class Witness(Protocol):
    """Reference, or one that remembers what it said."""

    def distributions(
        self,
        sequences: Sequence[Sequence[int]],
        allowed: int,
        first: Sequence[int] | None = None,
    ) -> list[Distribution]: ...


@dataclass(frozen=True)
class CacheRun:
    """One sequence fed in pieces, compared with the same artefact's full pass over it."""

    name: str
    pieces: tuple[int, ...]
    relative_error: float


@dataclass(frozen=True)
class BatchRun:
    """Sequences of these lengths in one left-padded batch, compared with each alone."""

    lengths: tuple[int, ...]
    relative_error: float


@dataclass(frozen=True)
class TextRun:
    """One text in the artefact's own tokenizer and in the source's."""

    text: str
    expected: tuple[int, ...]
    ids: tuple[int, ...]
    returned: str


@dataclass(frozen=True)
class Observed:
    """What the artefact did. `logits` is float32 [all tokens of `sequences`, vocabulary].

    `whole` fills the context; `tail` are the logits of its last tokens, fed one by one after
    chunks. `generated` holds what was written greedily after each of `openings`; `broken` says why
    that ended too early, if it did. `batch` is None where the runtime takes one sequence only.
    """

    sequences: tuple[tuple[int, ...], ...]
    logits: np.ndarray
    caches: tuple[CacheRun, ...]
    batch: BatchRun | None
    whole: tuple[int, ...]
    tail: np.ndarray
    openings: tuple[tuple[int, ...], ...]
    generated: tuple[tuple[int, ...], ...]
    broken: str
    texts: tuple[TextRun, ...]
    n_positions: int
    end_of_text: int


@dataclass(frozen=True)
class Witnessed:
    """What a reference says after the same tokens: those of the prompts, of the context's end, and
    of each generation, at the places where a token was taken."""

    logits: Distribution
    tail: Distribution
    generated: tuple[Distribution, ...]


@dataclass(frozen=True)
class Evidence:
    """Everything the checks judge. `allowed` is the tokenizer's size.

    `source` is the source's testimony. `stored` is that of the artefact's own weights, None where
    `unmade` says why they make no model.
    """

    observed: Observed
    source: Witnessed
    stored: Witnessed | None
    unmade: str
    allowed: int
    n_positions: int
    end_of_text: int


def observe(
    runtime: Runtime,
    tokenizer: Tokenizer,
    sequences: Sequence[Sequence[int]],
    openings: Sequence[Sequence[int]],
    whole: Sequence[int],
    max_new_tokens: int,
    texts: Sequence[str],
    progress: Progress,
) -> Observed:
    """Run the artefact: full passes, cached passes, a batch, the context, greedy generation, its
    tokenizer.

    The longest sequence is also fed as a prefill, a chunk and single tokens, the longest of at
    most 64 token by token. Generation ends where logits are not finite.
    """
    logits = _full_passes(runtime, sequences, progress)
    caches = _cached_passes(runtime, sequences, logits[:, : tokenizer.size], progress)
    batch = _batch(runtime, sequences, logits[:, : tokenizer.size]) if runtime.batches else None
    tail = _tail(runtime, whole, progress)
    generated, broken = _generated(runtime, openings, max_new_tokens, tokenizer.size, progress)
    return Observed(
        sequences=tuple(tuple(s) for s in sequences),
        logits=logits,
        caches=caches,
        batch=batch,
        whole=tuple(whole),
        tail=tail,
        openings=tuple(tuple(o) for o in openings),
        generated=generated,
        broken=broken,
        texts=_tokenized(runtime, tokenizer, texts, progress),
        n_positions=runtime.n_positions,
        end_of_text=runtime.end_of_text,
    )


def testify(witness: Witness, observed: Observed, allowed: int) -> Witnessed:
    """One pass of a reference over all that the artefact was given and wrote.

    Raises InputError where the reference cannot take those tokens.
    """
    continued = [
        opening + new for opening, new in zip(observed.openings, observed.generated, strict=True)
    ]
    first = [
        *[0] * len(observed.sequences),
        len(observed.whole) - len(observed.tail),
        *(len(opening) - 1 for opening in observed.openings),
    ]
    found = witness.distributions([*observed.sequences, observed.whole, *continued], allowed, first)
    count = len(observed.sequences)
    return Witnessed(
        logits=Distribution.joined(found[:count]),
        tail=found[count],
        generated=tuple(after[:-1] for after in found[count + 1 :]),
    )


def _cache_plans(sequences: Sequence[Sequence[int]]) -> list[tuple[str, int, tuple[int, ...]]]:
    """(name, sequence, lengths of its pieces); pieces sum to the sequence's length."""
    by_length = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    short = [i for i in by_length if len(sequences[i]) <= 64] or by_length[:1]
    stepped, chunked = short[-1], by_length[-1]
    length = len(sequences[chunked])
    steps = min(STEPS, max(0, length - 2))
    prefill = max(1, (length - steps) // 2)
    pieces = (prefill, length - steps - prefill, *[1] * steps)
    return [
        ("token by token", stepped, (1,) * len(sequences[stepped])),
        ("prefill, chunk, steps", chunked, tuple(p for p in pieces if p)),
    ]


def _full_passes(
    runtime: Runtime, sequences: Sequence[Sequence[int]], progress: Progress
) -> np.ndarray:
    progress.step("running the prompts", sum(map(len, sequences)))
    parts = []
    for sequence in sequences:
        runtime.reset()
        parts.append(runtime.feed(sequence))
        progress.advance(len(sequence))
    return np.concatenate(parts)


def _cached_passes(
    runtime: Runtime,
    sequences: Sequence[Sequence[int]],
    logits: np.ndarray,
    progress: Progress,
) -> tuple[CacheRun, ...]:
    """Compare with the full passes' `logits` of real tokens, in the sequences' order."""
    plans = _cache_plans(sequences)
    progress.step("decoding step by step", sum(sum(pieces) for _, _, pieces in plans))
    starts = np.cumsum([0, *map(len, sequences)])
    runs = []
    for name, index, pieces in plans:
        runtime.reset()
        parts, first = [], 0
        for length in pieces:
            fed = runtime.feed(sequences[index][first : first + length])
            parts.append(fed[:, : logits.shape[1]])
            first += length
            progress.advance(length)
        full = logits[starts[index] : starts[index + 1]]
        runs.append(CacheRun(name, pieces, relative_error(full, np.concatenate(parts))))
    return tuple(runs)


def _batch(
    runtime: Runtime, sequences: Sequence[Sequence[int]], logits: np.ndarray
) -> BatchRun | None:
    """The shortest sequences of different lengths, each with tokens left for single steps."""
    starts = np.cumsum([0, *map(len, sequences)])
    by_length = {len(s): i for i, s in enumerate(sequences) if len(s) > BATCH_STEPS}
    chosen = [by_length[length] for length in sorted(by_length)[:BATCHED]]
    if len(chosen) < 2:
        return None
    together = runtime.batch([sequences[i] for i in chosen], BATCH_STEPS)
    errors = [
        relative_error(logits[starts[i] : starts[i + 1]], found[:, : logits.shape[1]])
        for i, found in zip(chosen, together, strict=True)
    ]
    return BatchRun(tuple(len(sequences[i]) for i in chosen), float(np.max(errors)))


def _tail(runtime: Runtime, whole: Sequence[int], progress: Progress) -> np.ndarray:
    """Fill the context in chunks, the last tokens one by one: their logits."""
    progress.step("filling the context", len(whole))
    runtime.reset()
    ahead = max(1, len(whole) - STEPS)
    parts = []
    for first in range(0, ahead, CHUNK):
        piece = whole[first : min(first + CHUNK, ahead)]
        parts = [runtime.feed(piece)[-1:]]
        progress.advance(len(piece))
    for token in whole[ahead:]:
        parts.append(runtime.feed([token]))
        progress.advance(1)
    return np.concatenate(parts)


def _generated(
    runtime: Runtime,
    openings: Sequence[Sequence[int]],
    max_new_tokens: int,
    allowed: int,
    progress: Progress,
) -> tuple[tuple[tuple[int, ...], ...], str]:
    progress.step("generating", len(openings) * max_new_tokens)
    runs, broken = [], ""
    for opening in openings:
        new: list[int] = []
        try:
            # Beyond end-of-text too: every decision is one more comparison.
            for token in generate(
                runtime, opening, max_new_tokens, allowed=allowed, end_of_text=None
            ):
                new.append(token)
                progress.advance(1)
        except VerificationError as error:
            broken = broken or str(error)
        runs.append(tuple(new))
    return tuple(runs), broken


def _tokenized(
    runtime: Runtime, tokenizer: Tokenizer, texts: Sequence[str], progress: Progress
) -> tuple[TextRun, ...]:
    progress.step("comparing tokenizers", len(texts))
    runs = []
    for text in texts:
        ids = tuple(runtime.tokenize(text))
        runs.append(TextRun(text, tuple(tokenizer.encode(text)), ids, runtime.detokenize(ids)))
        progress.advance(1)
    return tuple(runs)
