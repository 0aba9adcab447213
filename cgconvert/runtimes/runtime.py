"""The interface of every runtime, and the padded batch that all of them share."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np

from cgconvert.errors import UsageError

__all__ = ["Runtime", "run_left_padded"]

Cache = TypeVar("Cache")

Run = Callable[[np.ndarray, np.ndarray, np.ndarray, Cache], tuple[np.ndarray, Cache]]
"""(input_ids [batch, length], attention_mask [batch, past + length], position_ids like input_ids,
cache) -> (logits float32 [batch, length, vocabulary], the grown cache). The arrays are int64."""


class Runtime(ABC):
    """An artefact loaded in a real runtime, with one growing KV cache for one sequence.

    Attributes:
        name: What the command line and reports call the runtime.
        package: The module that does the work; its `__version__` is the runtime's.
        device: "cpu" or "cuda".
        takes_batches: Whether `batch` works.
        activations: The type of all that is not a quantized matrix, "float32" or "float16".
    """

    name: str
    package: ClassVar[str]
    device: str
    takes_batches: bool = False
    activations: str = "float32"

    @classmethod
    @abstractmethod
    def open(cls, path: Path, device: str = "cpu", threads: int | None = None) -> Runtime:
        """Load the artefact at `path` on `device`, "cpu" or "cuda".

        Raises:
            MissingRuntimeError: The package is not installed.
            UsageError: The device is not there or has no room. The CPU never stands in for it.
            InputError: The runtime cannot load the artefact.
        """

    @classmethod
    def open_with_float_activations(
        cls, path: Path, device: str = "cpu", threads: int | None = None
    ) -> Runtime | None:
        """Load the artefact with its quantized matrices computed without quantized activations.

        Returns None where the runtime has no such mode on this device, or the artefact no matrices
        that it would change. Raises as `open`.
        """
        return None

    @property
    def version(self) -> str:
        """The version of the package that does the work."""
        return str(importlib.import_module(self.package).__version__)

    @property
    @abstractmethod
    def n_positions(self) -> int:
        """The longest sequence that the artefact says it takes, in tokens."""

    @abstractmethod
    def reset(self) -> None:
        """Empty the cache."""

    @abstractmethod
    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Append tokens to the cache; logits after each of them, float32 [len(ids), vocabulary].

        Raises UsageError for more tokens than the context has room for, or an unknown id.
        """

    def feed_last(self, ids: Sequence[int]) -> np.ndarray:
        """Append one token or more; logits after the last one alone, float32 [vocabulary]."""
        logits: np.ndarray = self.feed(ids)[-1]
        return logits

    def batch(self, sequences: Sequence[Sequence[int]], steps: int = 0) -> list[np.ndarray]:
        """Run sequences of different lengths as one left-padded batch.

        All but the last `steps` tokens of each are prefilled, then those are decoded one by one,
        with the attention mask and the position ids that clients use. The cache of `feed` stays as
        it is. Returns each sequence's logits, float32 [its length, vocabulary].

        Raises UsageError where the runtime takes one sequence at a time (`takes_batches` is False),
        and for a sequence longer than the context or not longer than `steps`.
        """
        raise UsageError(f"{self.name} takes one sequence at a time here, no padded batch")

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Ids of a text by the artefact's own tokenizer, nothing added at either end."""

    @abstractmethod
    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""

    @property
    @abstractmethod
    def tokenizer_size(self) -> int:
        """The number of ids in the artefact's own tokenizer; rows of logits past it are padding."""

    @property
    @abstractmethod
    def end_of_text_id(self) -> int:
        """The id at which the artefact itself says that generation ends."""

    def check_length(self, total: int) -> None:
        """Raise UsageError where `total` tokens are more than the context."""
        if total > self.n_positions:
            raise UsageError(
                f"{total} tokens are more than the model's context of {self.n_positions}"
            )

    def close(self) -> None:
        """Free what the runtime holds."""
        return


def run_left_padded(
    run: Run[Cache], cache: Cache, sequences: Sequence[Sequence[int]], steps: int
) -> list[np.ndarray]:
    """Prefill all but the last `steps` tokens of each sequence, then decode those one by one.

    The mask is 1 for tokens and 0 for padding; positions are its running sum less 1, and 0 for
    padding: as clients have them (transformers, generation/utils.py). `cache` is an empty one.
    Returns each sequence's logits, float32 [its length, vocabulary].

    Raises UsageError where a sequence has no token left to prefill.
    """
    if steps < 0:
        raise UsageError(f"the number of decode steps is {steps}; give 0 or more")
    if not sequences:
        return []
    lengths = [len(sequence) for sequence in sequences]
    if min(lengths) <= steps:
        raise UsageError(
            f"a sequence of {min(lengths)} tokens cannot be prefilled before {steps} decode steps"
        )
    width = max(lengths)
    # Padding is masked, so any id does; the artefact's own padding id may be outside the model.
    tokens = np.zeros((len(sequences), width), dtype=np.int64)
    mask = np.zeros_like(tokens)
    for row, sequence in enumerate(sequences):
        tokens[row, width - len(sequence) :] = sequence
        mask[row, width - len(sequence) :] = 1
    positions = np.where(mask, mask.cumsum(axis=1) - 1, 0)
    parts, start = [], 0
    for end in range(width - steps, width + 1):
        piece = slice(start, end)
        logits, cache = run(tokens[:, piece], mask[:, :end], positions[:, piece], cache)
        parts.append(logits)
        start = end
    padded_logits = np.concatenate(parts, axis=1)
    return [row[width - length :] for row, length in zip(padded_logits, lengths, strict=True)]
