"""What a verification saw: the artefact's own numbers and the references', gathered once.

The artefact runs first, alone; then one pass of each reference covers the prompts and everything
the artefact generated. There are two: the source, and what the artefact itself has stored. The
first says what was lost, the second whether the runtime computes what the file says. Nothing is
judged here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cgconvert.errors import InputError
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.verify.distribution import Distribution

__all__ = [
    "BatchRun",
    "CacheRun",
    "Evidence",
    "Observed",
    "ReferenceModel",
    "ReferenceOutputs",
    "TextRun",
    "gather",
]  # fmt: skip


class ReferenceModel(Protocol):
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
class ReferenceOutputs:
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
    source: ReferenceOutputs
    stored: ReferenceOutputs | None
    stored_error: str
    allowed: int
    n_positions: int
    end_of_text: int


def gather(
    observed: Observed,
    source: Checkpoint,
    witness: ReferenceModel,
    stored: Callable[[], ReferenceModel] | None,
) -> Evidence:
    """Have both references testify; without `stored` the source's numbers are the stored ones."""
    allowed = source.tokenizer.size
    of_source = _run_reference(witness, observed, allowed)
    of_stored: ReferenceOutputs | None = of_source
    stored_error = ""
    if stored is not None:
        try:
            of_stored = _run_reference(stored(), observed, allowed)
        except InputError as error:
            of_stored, stored_error = None, f"its weights make no model: {error}"
    return Evidence(
        observed=observed,
        source=of_source,
        stored=of_stored,
        stored_error=stored_error,
        allowed=allowed,
        n_positions=source.geometry.n_positions,
        end_of_text=source.tokenizer.end_of_text,
    )


def _run_reference(witness: ReferenceModel, observed: Observed, allowed: int) -> ReferenceOutputs:
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
    return ReferenceOutputs(
        logits=Distribution.joined(found[:count]),
        tail=found[count],
        generated=tuple(after[:-1] for after in found[count + 1 :]),
    )
