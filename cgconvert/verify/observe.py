"""Run an artefact: everything it does that is judged later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice

import numpy as np

from cgconvert.errors import VerificationError
from cgconvert.io.progress import Progress, Silent
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.runtimes.generate import generate
from cgconvert.runtimes.runtime import Runtime
from cgconvert.verify.metrics import relative_error
from cgconvert.verify.prompts import PROMPTS, tokenizer_texts

__all__ = ["NEW_TOKENS", "BatchRun", "CacheRun", "Observed", "TokenizerRun", "observe"]

NEW_TOKENS = 64
"""Greedy tokens after each opening, fewer where the context ends."""

OPENINGS = (2, 3)
"""Indices of the prompts that are continued: a function and a class, both with text before them."""

STEPS = 16
"""Single tokens after a prefill: a cache that forgets or misplaces one shows by then."""

MOST_CACHED_TOKENS = 256
"""Tokens of the longest sequence that are fed as a prefill, a chunk and steps; the tokens after
them do not change their logits."""

MOST_SINGLE_STEPS = 64
"""The longest sequence that is fed token by token."""

BATCH_SEQUENCES = 4
"""Sequences in the padded batch."""

BATCH_STEPS = 4
"""Single tokens that the padded batch decodes after its prefill."""

CHUNK = 256
"""Tokens fed at once on the way to the context's end."""


@dataclass(frozen=True)
class CacheRun:
    """One sequence fed in pieces, compared with the same artefact's full pass over it."""

    name: str
    pieces: tuple[int, ...]
    relative_error: float


@dataclass(frozen=True)
class BatchRun:
    """Sequences of these lengths in one left-padded batch, compared with each of them alone."""

    lengths: tuple[int, ...]
    relative_error: float


@dataclass(frozen=True)
class TokenizerRun:
    """One text in the source's tokenizer (`expected`) and in the artefact's own.

    `decoded` is the text that the artefact makes of its ids.
    """

    text: str
    expected: tuple[int, ...]
    ids: tuple[int, ...]
    decoded: str


@dataclass(frozen=True)
class Observed:
    """What the artefact did.

    Attributes:
        sequences: The ids of the prompts and of the texts' windows.
        logits: After every token of `sequences`, float32 [all tokens, vocabulary].
        cache_runs: Sequences fed in pieces through the cache.
        batch_run: The padded batch; None where the runtime takes one sequence only.
        full_context: Ids that fill the context.
        context_end_logits: After the last tokens of `full_context`, which were fed one by one.
        openings: The prompts that were continued.
        generated: The greedy tokens after each opening.
        generation_error: Why generation ended too early, if it did.
        tokenizer_runs: Texts in the artefact's own tokenizer and in the source's.
        n_positions: The context length that the artefact says it has.
        end_of_text: The id at which the artefact says generation ends.
    """

    sequences: tuple[tuple[int, ...], ...]
    logits: np.ndarray
    cache_runs: tuple[CacheRun, ...]
    batch_run: BatchRun | None
    full_context: tuple[int, ...]
    context_end_logits: np.ndarray
    openings: tuple[tuple[int, ...], ...]
    generated: tuple[tuple[int, ...], ...]
    generation_error: str
    tokenizer_runs: tuple[TokenizerRun, ...]
    n_positions: int
    end_of_text: int


def observe(
    runtime: Runtime,
    source: Checkpoint,
    text_windows: Sequence[Sequence[int]] = (),
    *,
    new_tokens: int = NEW_TOKENS,
    progress: Progress | None = None,
) -> Observed:
    """Have an open runtime do all that is judged, on the prompts and on the windows of the texts.

    Sequences are cut to the shorter of the two contexts, openings to half of it; the prompts,
    repeated, fill it. The longest sequence is also fed as a prefill, a chunk and single tokens, the
    longest of at most MOST_SINGLE_STEPS token by token, the shortest ones as a padded batch.
    Generation ends where logits are not finite.
    """
    progress = progress or Silent()
    tokenizer = source.tokenizer
    context = min(runtime.n_positions, source.geometry.n_positions)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    sequences = [tuple(sequence[:context]) for sequence in (*prompts, *text_windows)]
    openings = [sequences[i][: max(1, context // 2)] for i in OPENINGS]
    full_context = tuple(islice(cycle(chain.from_iterable(prompts)), context))
    logits = _full_passes(runtime, sequences, progress)
    token_logits = logits[:, : tokenizer.size]
    cache_runs = _cache_runs(runtime, sequences, token_logits, progress)
    batch_run = _batch_run(runtime, sequences, token_logits) if runtime.takes_batches else None
    context_end_logits = _fill_context(runtime, full_context, progress)
    generated, generation_error = _generate(runtime, openings, new_tokens, tokenizer.size, progress)
    return Observed(
        sequences=tuple(sequences),
        logits=logits,
        cache_runs=cache_runs,
        batch_run=batch_run,
        full_context=full_context,
        context_end_logits=context_end_logits,
        openings=tuple(openings),
        generated=generated,
        generation_error=generation_error,
        tokenizer_runs=_tokenizer_runs(runtime, tokenizer, tokenizer_texts(), progress),
        n_positions=runtime.n_positions,
        end_of_text=runtime.end_of_text,
    )


def _full_passes(
    runtime: Runtime, sequences: Sequence[Sequence[int]], progress: Progress
) -> np.ndarray:
    """Logits after every token, each sequence fed at once into an empty cache."""
    progress.step("running the prompts", sum(map(len, sequences)))
    parts = []
    for sequence in sequences:
        runtime.reset()
        parts.append(runtime.feed(sequence))
        progress.advance(len(sequence))
    return np.concatenate(parts)


def _cache_runs(
    runtime: Runtime,
    sequences: Sequence[Sequence[int]],
    full_pass_logits: np.ndarray,
    progress: Progress,
) -> tuple[CacheRun, ...]:
    """Feed sequences in pieces and compare with the full passes' logits.

    `full_pass_logits` are those of all sequences, one after the other, without padded rows.
    """
    plans = _cache_plans(sequences)
    progress.step("decoding step by step", sum(sum(pieces) for _, _, pieces in plans))
    starts = np.cumsum([0, *map(len, sequences)])
    vocabulary = full_pass_logits.shape[1]
    runs = []
    for name, index, pieces in plans:
        runtime.reset()
        parts, position = [], 0
        for length in pieces:
            logits = runtime.feed(sequences[index][position : position + length])
            parts.append(logits[:, :vocabulary])
            position += length
            progress.advance(length)
        full_pass = full_pass_logits[starts[index] : starts[index] + position]
        runs.append(CacheRun(name, pieces, relative_error(full_pass, np.concatenate(parts))))
    return tuple(runs)


def _cache_plans(sequences: Sequence[Sequence[int]]) -> list[tuple[str, int, tuple[int, ...]]]:
    """What is fed in pieces: a name, the index of a sequence, the lengths of its pieces."""
    by_length = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    short = [i for i in by_length if len(sequences[i]) <= MOST_SINGLE_STEPS] or by_length[:1]
    stepped, longest = short[-1], by_length[-1]
    length = min(len(sequences[longest]), MOST_CACHED_TOKENS)
    steps = min(STEPS, max(0, length - 2))
    prefill = max(1, (length - steps) // 2)
    pieces = (prefill, length - steps - prefill, *[1] * steps)
    return [
        ("token by token", stepped, (1,) * len(sequences[stepped])),
        ("prefill, chunk, steps", longest, tuple(piece for piece in pieces if piece)),
    ]


def _batch_run(
    runtime: Runtime, sequences: Sequence[Sequence[int]], full_pass_logits: np.ndarray
) -> BatchRun | None:
    """Run the shortest sequences of different lengths that leave tokens for single steps."""
    starts = np.cumsum([0, *map(len, sequences)])
    by_length = {len(s): i for i, s in enumerate(sequences) if len(s) > BATCH_STEPS}
    chosen = [by_length[length] for length in sorted(by_length)[:BATCH_SEQUENCES]]
    if len(chosen) < 2:
        return None
    batch_logits = runtime.batch([sequences[i] for i in chosen], BATCH_STEPS)
    errors = [
        relative_error(
            full_pass_logits[starts[i] : starts[i + 1]], logits[:, : full_pass_logits.shape[1]]
        )
        for i, logits in zip(chosen, batch_logits, strict=True)
    ]
    return BatchRun(tuple(len(sequences[i]) for i in chosen), float(np.max(errors)))


def _fill_context(runtime: Runtime, ids: Sequence[int], progress: Progress) -> np.ndarray:
    """Feed ids in chunks, the last STEPS one by one; logits after the last chunk and each step."""
    progress.step("filling the context", len(ids))
    runtime.reset()
    stepped_from = max(1, len(ids) - STEPS)
    parts = []
    for start in range(0, stepped_from, CHUNK):
        piece = ids[start : min(start + CHUNK, stepped_from)]
        parts = [runtime.feed_last(piece)[None]]
        progress.advance(len(piece))
    for token in ids[stepped_from:]:
        parts.append(runtime.feed([token]))
        progress.advance(1)
    return np.concatenate(parts)


def _generate(
    runtime: Runtime,
    openings: Sequence[Sequence[int]],
    max_new_tokens: int,
    allowed: int,
    progress: Progress,
) -> tuple[tuple[tuple[int, ...], ...], str]:
    """Greedy tokens after each opening, and the first error that ended one too early."""
    progress.step("generating", len(openings) * max_new_tokens)
    generated, first_error = [], ""
    for opening in openings:
        new: list[int] = []
        try:
            # Past end-of-text too: every decision is one more comparison.
            for token in generate(
                runtime, opening, max_new_tokens, allowed=allowed, end_of_text=None
            ):
                new.append(token)
                progress.advance(1)
        except VerificationError as error:
            first_error = first_error or str(error)
        generated.append(tuple(new))
    return tuple(generated), first_error


def _tokenizer_runs(
    runtime: Runtime, tokenizer: Tokenizer, texts: Sequence[str], progress: Progress
) -> tuple[TokenizerRun, ...]:
    progress.step("comparing tokenizers", len(texts))
    runs = []
    for text in texts:
        ids = tuple(runtime.tokenize(text))
        expected = tuple(tokenizer.encode(text))
        runs.append(TokenizerRun(text, expected, ids, runtime.detokenize(ids)))
        progress.advance(1)
    return tuple(runs)
