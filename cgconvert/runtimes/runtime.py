"""The small interface behind which every runtime stands."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cgconvert.errors import UsageError

__all__ = ["Runtime"]


class Runtime(ABC):
    """An artefact loaded in a real runtime, with one growing KV cache for one sequence."""

    name: str
    device: str

    batches: bool = False
    """Whether `batch` works: whether it takes several sequences at once, padded."""

    @classmethod
    @abstractmethod
    def open(cls, path: Path, device: str = "cpu", threads: int | None = None) -> Runtime:
        """Load the artefact at `path` on `device` ("cpu" or "cuda").

        Raises MissingRuntimeError where the package is not there, UsageError where the device is
        not or cannot take it (the CPU never stands in), InputError where the runtime cannot load
        the file.
        """

    @property
    @abstractmethod
    def n_positions(self) -> int:
        """The longest sequence the artefact says it can take, in tokens."""

    @abstractmethod
    def reset(self) -> None:
        """Forget the cache."""

    @abstractmethod
    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Append tokens to the cache; logits after each of them, float32 [len(ids), vocabulary]."""

    def batch(self, sequences: Sequence[Sequence[int]], steps: int = 0) -> list[np.ndarray]:
        """Run sequences of different lengths as one left-padded batch, apart from the cache.

        All but the last `steps` tokens of each are prefilled, those are then decoded one by one,
        with the attention mask and the position ids that clients give. What `feed` has fed stays.
        Returns each sequence's logits, float32 [its length, vocabulary].

        Raises UsageError where this runtime takes one sequence at a time (`batches` is False), for
        a sequence longer than the context or not longer than `steps`.
        """
        raise UsageError(f"{self.name} takes one sequence at a time here, no padded batch")

    def last(self, ids: Sequence[int]) -> np.ndarray:
        """As `feed` of one token or more, but the last one's logits alone: float32 [vocabulary]."""
        logits: np.ndarray = self.feed(ids)[-1]
        return logits

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Ids of a text in the artefact's own tokenizer, nothing added at either end."""

    @abstractmethod
    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens shown."""

    @property
    @abstractmethod
    def tokens(self) -> int:
        """How many ids the artefact's own tokenizer has; rows of logits past them are padding."""

    @property
    @abstractmethod
    def end_of_text(self) -> int:
        """The id at which the artefact itself says generation ends."""

    def check_length(self, total: int) -> None:
        """Raises UsageError where `total` tokens are more than the context."""
        if total > self.n_positions:
            raise UsageError(
                f"{total} tokens are more than the model's context of {self.n_positions}"
            )

    def close(self) -> None:
        """Free what the runtime holds."""
        return
