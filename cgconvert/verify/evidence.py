"""What a verification saw: the artefact's own numbers and the reference's, gathered once.

The artefact runs first, alone; then one pass of the reference covers the prompts and everything
the artefact generated. Nothing is judged here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cgconvert.errors import VerificationError
from cgconvert.runtimes.generate import generate
from cgconvert.runtimes.runtime import Runtime
from cgconvert.stream.progress import Progress
from cgconvert.tokenizer import Tokenizer
from cgconvert.verify.metrics import TopTwo, relative_error, top_two
from cgconvert.verify.reference import Reference

__all__ = ["CacheRun", "Evidence", "Generation", "Observed", "TextRun", "observe", "witness"]

STEPS = 16
"""Single tokens after a prefill: enough for a cache that forgets or misplaces one to show."""


@dataclass(frozen=True)
class CacheRun:
    """One sequence fed in pieces, compared with the same artefact's full pass over it."""

    name: str
    pieces: tuple[int, ...]
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

    `generated` holds what it wrote greedily after each of `openings`; `broken` says why that
    ended too early, if it did.
    """

    sequences: tuple[tuple[int, ...], ...]
    logits: np.ndarray
    caches: tuple[CacheRun, ...]
    openings: tuple[tuple[int, ...], ...]
    generated: tuple[tuple[int, ...], ...]
    broken: str
    texts: tuple[TextRun, ...]
    n_positions: int
    end_of_text: int


@dataclass(frozen=True)
class Generation:
    """Greedy ids, and what the reference would have taken at each place after the same tokens."""

    ids: tuple[int, ...]
    reference: TopTwo


@dataclass(frozen=True)
class Evidence:
    """Everything the checks judge. `allowed` is the tokenizer's size."""

    observed: Observed
    reference: np.ndarray
    generations: tuple[Generation, ...]
    allowed: int
    n_positions: int
    end_of_text: int


def observe(
    runtime: Runtime,
    tokenizer: Tokenizer,
    sequences: Sequence[Sequence[int]],
    openings: Sequence[Sequence[int]],
    max_new_tokens: int,
    texts: Sequence[str],
    progress: Progress,
) -> Observed:
    """Run the artefact: full passes, cached passes, greedy generation, its tokenizer.

    The longest sequence is also fed as a prefill, a chunk and single tokens, the longest of at
    most 64 token by token. Generation ends where logits are not finite.
    """
    logits = _full_passes(runtime, sequences, progress)
    caches = _cached_passes(runtime, sequences, logits[:, : tokenizer.size], progress)
    generated, broken = _generated(runtime, openings, max_new_tokens, tokenizer.size, progress)
    return Observed(
        sequences=tuple(tuple(s) for s in sequences),
        logits=logits,
        caches=caches,
        openings=tuple(tuple(o) for o in openings),
        generated=generated,
        broken=broken,
        texts=_tokenized(runtime, tokenizer, texts, progress),
        n_positions=runtime.n_positions,
        end_of_text=runtime.end_of_text,
    )


def witness(observed: Observed, reference: Reference, tokenizer: Tokenizer) -> Evidence:
    """One pass of the reference over the prompts and over all that was generated."""
    continued = [
        opening + new for opening, new in zip(observed.openings, observed.generated, strict=True)
    ]
    logits = reference.logits([*observed.sequences, *continued])
    count = len(observed.sequences)
    generations = tuple(
        Generation(new, top_two(after[len(opening) - 1 : -1], tokenizer.size))
        for opening, new, after in zip(
            observed.openings, observed.generated, logits[count:], strict=True
        )
    )
    return Evidence(
        observed=observed,
        reference=np.concatenate(logits[:count]),
        generations=generations,
        allowed=tokenizer.size,
        n_positions=reference.decoder.geometry.n_positions,
        end_of_text=tokenizer.end_of_text,
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
