"""The small interface behind which every runtime stands."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

__all__ = ["Runtime"]


class Runtime(ABC):
    """An artefact loaded in a real runtime, with one growing KV cache for one sequence."""

    name: str
    device: str

    @classmethod
    @abstractmethod
    def open(cls, path: Path, device: str = "cpu", threads: int | None = None) -> Runtime:
        """Load the artefact at `path` on `device` ("cpu" or "cuda").

        Raises MissingRuntimeError where the package or the device is not there, InputError where
        the runtime cannot load the file.
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

    def close(self) -> None:
        """Free what the runtime holds."""
        return
