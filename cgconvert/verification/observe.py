"""Run an artefact, and record everything it does that the checks judge later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice

import numpy as np

from cgconvert.errors import VerificationError
from cgconvert.io.progress import Amount, Progress, SilentProgress
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.runtimes.generate import generate
from cgconvert.runtimes.runtime import Runtime
from cgconvert.verification.metrics import relative_error
from cgconvert.verification.prompts import PROMPTS, SHORT_TEXTS, tokenizer_texts

__all__ = [
    "NEW_TOKENS", "BatchRun", "CacheRun", "FloatActivationRun", "Observation", "TokenizerRun",
    "observe", "observe_quickly", "run_with_float_activations",
]  # fmt: skip

NEW_TOKENS = 64
"""Greedy tokens generated after each opening, fewer if the context ends."""

OPENING_PROMPTS = (2, 3)
"""Indices in PROMPTS of the prompts that the artefact continues: a function and a class."""

SINGLE_STEPS = 16
"""Tokens fed one by one after a prefill: a cache that loses or misplaces a token shows by then."""

MAX_CACHED_TOKENS = 256
"""Tokens of the longest sequence that are fed as a prefill, a chunk and single tokens. Tokens that
come later do not change the logits of these."""

MAX_TOKEN_BY_TOKEN = 64
"""The length up to which a sequence may be fed token by token."""

BATCH_SEQUENCES = 4
"""Sequences in the padded batch."""

BATCH_STEPS = 4
"""Single tokens that the padded batch decodes after its prefill."""

CHUNK_TOKENS = 256
"""Tokens fed at once until the context is nearly full."""


@dataclass(frozen=True)
class CacheRun:
    """One sequence fed in pieces, compared with the same artefact's full pass over it.

    Attributes:
        name: How the sequence was cut, in words.
        pieces: The number of tokens of each piece.
        relative_error: max |logit difference| / max |logit of the full pass|.
    """

    name: str
    pieces: tuple[int, ...]
    relative_error: float


@dataclass(frozen=True)
class BatchRun:
    """Sequences in one left-padded batch, compared with each of them fed alone.

    Attributes:
        lengths: The number of tokens of each sequence.
        relative_error: The largest of all sequences, as in CacheRun.
    """

    lengths: tuple[int, ...]
    relative_error: float


@dataclass(frozen=True)
class TokenizerRun:
    """One text in the source's tokenizer and in the artefact's own.

    Attributes:
        text: The text.
        expected: The ids that the source's tokenizer gives.
        ids: The ids that the artefact's tokenizer gives.
        decoded: The text that the artefact's tokenizer makes of `ids`.
    """

    text: str
    expected: tuple[int, ...]
    ids: tuple[int, ...]
    decoded: str


@dataclass(frozen=True)
class FloatActivationRun:
    """What an artefact gives if it multiplies its quantized matrices by float activations.

    Attributes:
        logits: After every token of the prompts, float32 [all tokens, vocab_size].
        activations: The runtime's type of activations, "float32" or "float16".
    """

    logits: np.ndarray
    activations: str


@dataclass(frozen=True)
class Observation:
    """What the artefact did.

    Attributes:
        sequences: The ids of the prompts, then those of the windows of the user's texts.
        logits: After every token of `sequences`, float32 [all tokens, vocab_size].
        cache_runs: Sequences fed in pieces through the cache.
        batch_run: The padded batch; None if the runtime takes one sequence at a time, or if the
            sequences are too short.
        full_context: Ids that fill the context; none in a quick verification, which has no cache
            runs, batch and openings either.
        context_end_logits: After the last tokens of `full_context`, all but the first of which
            were fed one by one, float32 [those tokens, vocab_size].
        openings: The ids of the prompts that were continued.
        generated: The greedy tokens after each opening.
        generation_error: Why generation ended too early; empty if it did not.
        tokenizer_runs: Texts in the artefact's own tokenizer and in the source's.
        n_positions: The context length that the artefact says it has.
        eos_token_ids: The ids at which the artefact says that generation ends.
        stopping_ids: All ids at which its runtime ends a generation.
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
    eos_token_ids: tuple[int, ...]
    stopping_ids: frozenset[int]


def observe(
    runtime: Runtime,
    source: Checkpoint,
    text_windows: Sequence[Sequence[int]] = (),
    *,
    new_tokens: int = NEW_TOKENS,
    progress: Progress | None = None,
) -> Observation:
    """Have a runtime do all that is judged, on the prompts and on windows of the user's texts.

    Each sequence is fed at once into an empty cache. Then the longest one is fed as a prefill, a
    chunk and single tokens; the longest of at most MAX_TOKEN_BY_TOKEN tokens token by token; and
    the shortest ones as one padded batch. The prompts, repeated, fill the context. Last come
    greedy generation, which ends early at logits that are not finite, and the tokenizer.

    Args:
        runtime: The artefact, open.
        source: The checkpoint it was made from.
        text_windows: Ids of windows of the user's texts.
        new_tokens: How many tokens are generated after each opening.
        progress: Gets the steps.
    """
    progress = progress or SilentProgress()
    tokenizer = source.tokenizer
    # What is longer than either context is cut; openings leave half of it to generation.
    context = min(runtime.n_positions, source.geometry.n_positions)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    sequences = [tuple(sequence[:context]) for sequence in (*prompts, *text_windows)]
    openings = [sequences[i][: max(1, context // 2)] for i in OPENING_PROMPTS]
    full_context = tuple(islice(cycle(chain.from_iterable(prompts)), context))
    logits = _full_passes(runtime, sequences, progress)
    token_logits = logits[:, : tokenizer.size]  # without padded rows
    cache_runs = _cache_runs(runtime, sequences, token_logits, progress)
    batch_run = _batch_run(runtime, sequences, token_logits) if runtime.takes_batches else None
    context_end_logits = _fill_context(runtime, full_context, progress)
    generated, generation_error = _generate(runtime, openings, new_tokens, tokenizer.size, progress)
    return Observation(
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
        eos_token_ids=runtime.eos_token_ids,
        stopping_ids=runtime.stopping_ids,
    )


QUICK_PROMPT = 3
"""The index in PROMPTS of the prompt that a quick verification runs: a class of 30 tokens."""


def observe_quickly(
    runtime: Runtime, source: Checkpoint, progress: Progress | None = None
) -> Observation:
    """Have a runtime compute one prompt, and compare the tokenizers; the rest is left empty.

    Args:
        runtime: The artefact, open.
        source: The checkpoint it was made from.
        progress: Gets the steps.
    """
    progress = progress or SilentProgress()
    context = min(runtime.n_positions, source.geometry.n_positions)
    sequence = tuple(source.tokenizer.encode(PROMPTS[QUICK_PROMPT])[:context])
    return Observation(
        sequences=(sequence,),
        logits=_full_passes(runtime, [sequence], progress),
        cache_runs=(),
        batch_run=None,
        full_context=(),
        context_end_logits=np.empty((0, 0), dtype=np.float32),
        openings=(),
        generated=(),
        generation_error="",
        tokenizer_runs=_tokenizer_runs(runtime, source.tokenizer, SHORT_TEXTS, progress),
        n_positions=runtime.n_positions,
        eos_token_ids=runtime.eos_token_ids,
        stopping_ids=runtime.stopping_ids,
    )


def run_with_float_activations(runtime: Runtime, observation: Observation) -> FloatActivationRun:
    """Feed the prompts once more to a runtime that was opened with float activations; close it."""
    try:
        parts = []
        for prompt in observation.sequences[: len(PROMPTS)]:
            runtime.reset()
            parts.append(runtime.feed(prompt))
    finally:
        runtime.close()
    return FloatActivationRun(np.concatenate(parts), runtime.activations)


def _full_passes(
    runtime: Runtime, sequences: Sequence[Sequence[int]], progress: Progress
) -> np.ndarray:
    """Feed each sequence at once into an empty cache; logits after every token of all of them."""
    progress.step("running the prompts", Amount(sum(map(len, sequences)), "tokens"))
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
    """Feed sequences in pieces, and compare the logits with those of the full passes.

    `full_pass_logits` is float32 [tokens of all sequences, ids of the tokenizer].
    """
    cuts = _cache_cuts(sequences)
    total = sum(sum(pieces) for _, _, pieces in cuts)
    progress.step("decoding step by step", Amount(total, "tokens"))
    starts = np.cumsum([0, *map(len, sequences)])
    tokenizer_size = full_pass_logits.shape[1]
    runs = []
    for name, index, pieces in cuts:
        runtime.reset()
        parts, position = [], 0
        for length in pieces:
            logits = runtime.feed(sequences[index][position : position + length])
            parts.append(logits[:, :tokenizer_size])
            position += length
            progress.advance(length)
        full_pass = full_pass_logits[starts[index] : starts[index] + position]
        runs.append(CacheRun(name, pieces, relative_error(full_pass, np.concatenate(parts))))
    return tuple(runs)


def _cache_cuts(sequences: Sequence[Sequence[int]]) -> list[tuple[str, int, tuple[int, ...]]]:
    """Choose what is fed in pieces: (name, index of the sequence, lengths of its pieces) each."""
    by_length = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    short = [i for i in by_length if len(sequences[i]) <= MAX_TOKEN_BY_TOKEN] or by_length[:1]
    longest_short, longest = short[-1], by_length[-1]
    length = min(len(sequences[longest]), MAX_CACHED_TOKENS)
    steps = min(SINGLE_STEPS, max(0, length - 2))
    prefill = max(1, (length - steps) // 2)
    pieces = (prefill, length - steps - prefill, *[1] * steps)
    return [
        ("token by token", longest_short, (1,) * len(sequences[longest_short])),
        ("prefill, chunk, steps", longest, tuple(piece for piece in pieces if piece)),
    ]


def _batch_run(
    runtime: Runtime, sequences: Sequence[Sequence[int]], full_pass_logits: np.ndarray
) -> BatchRun | None:
    """Run the shortest sequences of different lengths as one padded batch.

    Returns None if fewer than two sequences have more than BATCH_STEPS tokens.
    """
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
    """Feed ids in chunks, and the last SINGLE_STEPS one by one.

    Returns the logits after the last chunk and after each single token, [1 + single tokens,
    vocab_size].
    """
    progress.step("filling the context", Amount(len(ids), "tokens"))
    runtime.reset()
    first_single = max(1, len(ids) - SINGLE_STEPS)
    parts = []
    for start in range(0, first_single, CHUNK_TOKENS):
        piece = ids[start : min(start + CHUNK_TOKENS, first_single)]
        parts = [runtime.feed_last(piece)[None]]
        progress.advance(len(piece))
    for token in ids[first_single:]:
        parts.append(runtime.feed([token]))
        progress.advance(1)
    return np.concatenate(parts)


def _generate(
    runtime: Runtime,
    openings: Sequence[Sequence[int]],
    max_new_tokens: int,
    tokenizer_size: int,
    progress: Progress,
) -> tuple[tuple[tuple[int, ...], ...], str]:
    """The greedy tokens after each opening, and the first error that ended generation too early."""
    progress.step("generating", Amount(len(openings) * max_new_tokens, "tokens"))
    generated, first_error = [], ""
    for opening in openings:
        new_ids: list[int] = []
        try:
            # Goes on after the end-of-text id: every token that is picked is one more comparison.
            for token in generate(
                runtime, opening, max_new_tokens, tokenizer_size=tokenizer_size, eos_token_ids=()
            ):
                new_ids.append(token)
                progress.advance(1)
        except VerificationError as error:
            first_error = first_error or str(error)
        generated.append(tuple(new_ids))
    return tuple(generated), first_error


def _tokenizer_runs(
    runtime: Runtime, tokenizer: Tokenizer, texts: Sequence[str], progress: Progress
) -> tuple[TokenizerRun, ...]:
    """Encode texts with both tokenizers, and decode the ids of the artefact's."""
    progress.step("comparing tokenizers", Amount(len(texts), "texts"))
    runs = []
    for text in texts:
        ids = tuple(runtime.tokenize(text))
        expected = tuple(tokenizer.encode(text))
        runs.append(TokenizerRun(text, expected, ids, runtime.detokenize(ids)))
        progress.advance(1)
    return tuple(runs)
