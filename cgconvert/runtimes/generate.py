"""Greedy or sampled decoding, the same for every runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from cgconvert.errors import InputError, UsageError, VerificationError
from cgconvert.runtimes.runtime import Runtime

__all__ = ["generate"]


def generate(
    runtime: Runtime,
    ids: Sequence[int],
    max_new_tokens: int,
    *,
    allowed: int,
    end_of_text: int | None,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[int]:
    """Yield new ids after the prompt `ids`, one at a time.

    It ends after `max_new_tokens`, before `end_of_text` (not yielded; None: never), or where the
    context is full. Only the first `allowed` ids, those the tokenizer knows, can be picked.
    Temperature 0 takes the best, the lowest id of equals; otherwise an id is drawn from
    softmax(logits / temperature), and the same seed draws the same ids.

    Raises UsageError for a negative temperature or count, InputError for a prompt that is empty or
    longer than the context, VerificationError where the artefact's logits are not finite.
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
    return _decode(runtime, list(ids), max_new_tokens, allowed, end_of_text, temperature, seed)


def _decode(
    runtime: Runtime,
    ids: list[int],
    max_new_tokens: int,
    allowed: int,
    end_of_text: int | None,
    temperature: float,
    seed: int,
) -> Iterator[int]:
    random = np.random.default_rng(seed)
    room = min(max_new_tokens, runtime.n_positions - len(ids))
    runtime.reset()
    waiting = ids
    for position in range(len(ids), len(ids) + room):
        logits = runtime.last(waiting)[:allowed]
        if not np.isfinite(logits).all():
            raise VerificationError(
                f"the artefact's logits after {position} tokens are not finite; verify it"
            )
        token = _pick(logits, temperature, random)
        if token == end_of_text:
            return
        yield token
        waiting = [token]


def _pick(logits: np.ndarray, temperature: float, random: np.random.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    wide = logits.astype(np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature: exp(-inf) is the 0 that is meant
        weights = np.exp((wide - wide.max()) / temperature)
    total = np.cumsum(weights)
    return int(np.searchsorted(total, random.random() * total[-1], side="right"))
