"""Greedy or sampled generation, the same in every runtime."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from cgconvert.errors import InputError, UsageError, VerificationError
from cgconvert.runtimes.runtime import Runtime

__all__ = ["generate"]


def generate(
    runtime: Runtime,
    ids: Sequence[int],
    max_new_tokens: int,
    *,
    tokenizer_size: int,
    eos_token_ids: Collection[int],
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[int]:
    """Yield the ids that follow a prompt, one at a time, until the context is full.

    Args:
        runtime: An open runtime; its cache is emptied first.
        ids: The prompt.
        max_new_tokens: Generation ends after this many tokens.
        tokenizer_size: Only ids below this can be picked, those that the tokenizer has, and ends.
        eos_token_ids: The ids that end generation and are not yielded; there may be none.
        temperature: 0 picks the id of the largest logit, the lowest id of equal ones; any other
            temperature draws an id from softmax(logits / temperature).
        seed: The same seed draws the same ids.

    Raises:
        UsageError: The temperature or the number of tokens is negative.
        InputError: The prompt is empty or longer than the context.
        VerificationError: The artefact's logits are not finite.
    """
    if not (temperature >= 0 and np.isfinite(temperature)):
        raise UsageError(f"temperature is {temperature}; give 0 (greedy) or more")
    if max_new_tokens < 0:
        raise UsageError(f"the number of new tokens is {max_new_tokens}; give 0 or more")
    if not ids:
        raise InputError("the prompt has no tokens; give it some text")
    if len(ids) > runtime.n_positions:
        raise InputError(
            f"the prompt has {len(ids)} tokens, the artefact takes {runtime.n_positions}; "
            "shorten it"
        )
    return _decode(
        runtime, list(ids), max_new_tokens, tokenizer_size, eos_token_ids, temperature, seed
    )


def _decode(
    runtime: Runtime,
    ids: list[int],
    max_new_tokens: int,
    tokenizer_size: int,
    eos_token_ids: Collection[int],
    temperature: float,
    seed: int,
) -> Iterator[int]:
    """Generate as `generate` does, which has checked the arguments."""
    random = np.random.default_rng(seed)
    # A row without a token may be an end all the same: that of a fine-tune whose tokenizer is lost.
    ends_without_token = sorted(index for index in eos_token_ids if index >= tokenizer_size)
    count = min(max_new_tokens, runtime.n_positions - len(ids))
    runtime.reset()
    to_feed = ids
    for position in range(len(ids), len(ids) + count):
        all_logits = runtime.feed_last(to_feed)
        rows = [index for index in ends_without_token if index < len(all_logits)]
        logits = np.concatenate([all_logits[:tokenizer_size], all_logits[rows]])
        if not np.isfinite(logits).all():
            raise VerificationError(
                f"the artefact's logits after {position} tokens are not finite; verify it"
            )
        token = _pick(logits, temperature, random)
        if token in eos_token_ids or token >= tokenizer_size:
            return
        yield token
        to_feed = [token]


def _pick(logits: np.ndarray, temperature: float, random: np.random.Generator) -> int:
    """Pick the next id from the logits of one position; see `generate` for the temperature."""
    if temperature == 0:
        return int(logits.argmax())
    logits = logits.astype(np.float64)
    # A tiny temperature overflows: exp(-inf) is 0, which is right.
    with np.errstate(over="ignore"):
        weights = np.exp((logits - logits.max()) / temperature)
    cumulative = np.cumsum(weights)
    return int(np.searchsorted(cumulative, random.random() * cumulative[-1], side="right"))
