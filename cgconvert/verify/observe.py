"""Run an artefact: everything it does that is judged later."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, cycle, islice

import numpy as np

from cgconvert.errors import VerificationError
from cgconvert.io.progress import Progress, Silent
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.runtimes.generate import generate
from cgconvert.runtimes.runtime import Runtime
from cgconvert.verify.evidence import BatchRun, CacheRun, Observed, TextRun
from cgconvert.verify.metrics import relative_error
from cgconvert.verify.prompts import PROMPTS, tokenizer_texts

__all__ = ["NEW_TOKENS", "observe"]

NEW_TOKENS = 64
"""Greedy tokens after each opening, fewer where the context ends."""

OPENINGS = (2, 3)
"""The prompts that are continued: a function and a class, each with its text ahead."""

STEPS = 16
"""Single tokens after a prefill: enough for a cache that forgets or misplaces one to show."""

CHUNKED = 256
"""Tokens of the longest sequence that go in as a prefill, a chunk and steps; what comes after them
does not change their logits."""

BATCHED = 4
"""Sequences in the padded batch."""

BATCH_STEPS = 4
"""Single tokens that the padded batch decodes after its prefill."""

CHUNK = 256
"""Tokens at a time on the way to the context's end."""


def observe(
    runtime: Runtime,
    source: Checkpoint,
    more: Sequence[Sequence[int]] = (),
    *,
    new_tokens: int = NEW_TOKENS,
    progress: Progress | None = None,
) -> Observed:
    """Have an open runtime do all that is judged, on the default prompts and on `more` sequences.

    All are cut to the shorter of the two contexts, what is continued to half of it; the prompts,
    repeated, fill it. The longest sequence is also fed as a prefill, a chunk and single tokens,
    the longest of at most 64 token by token, the shortest together as a padded batch. Generation
    ends where logits are not finite.
    """
    progress = progress or Silent()
    tokenizer = source.tokenizer
    limit = min(runtime.n_positions, source.geometry.n_positions)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    sequences = [tuple(sequence[:limit]) for sequence in (*prompts, *more)]
    openings = [sequences[i][: max(1, limit // 2)] for i in OPENINGS]
    whole = tuple(islice(cycle(chain.from_iterable(prompts)), limit))
    logits = _full_passes(runtime, sequences, progress)
    real = logits[:, : tokenizer.size]
    caches = _cached_passes(runtime, sequences, real, progress)
    batch = _batch(runtime, sequences, real) if runtime.batches else None
    tail = _tail(runtime, whole, progress)
    generated, broken = _generated(runtime, openings, new_tokens, tokenizer.size, progress)
    return Observed(
        sequences=tuple(sequences),
        logits=logits,
        caches=caches,
        batch=batch,
        whole=whole,
        tail=tail,
        openings=tuple(openings),
        generated=generated,
        broken=broken,
        texts=_tokenized(runtime, tokenizer, tokenizer_texts(), progress),
        n_positions=runtime.n_positions,
        end_of_text=runtime.end_of_text,
    )


def _cache_plans(sequences: Sequence[Sequence[int]]) -> list[tuple[str, int, tuple[int, ...]]]:
    """(name, sequence, lengths of its pieces)."""
    by_length = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    short = [i for i in by_length if len(sequences[i]) <= 64] or by_length[:1]
    stepped, chunked = short[-1], by_length[-1]
    length = min(len(sequences[chunked]), CHUNKED)
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
        full = logits[starts[index] : starts[index] + first]
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
        parts = [runtime.last(piece)[None]]
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
