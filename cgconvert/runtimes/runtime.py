"""The interface of every runtime, and the padded batch that all of them share."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from cgconvert.errors import UsageError
from cgconvert.formats.registry import load as load_format
from cgconvert.io.admitted import AdmittedFiles

__all__ = ["Runtime", "run_left_padded"]

Cache = TypeVar("Cache")

Run = Callable[[np.ndarray, np.ndarray, np.ndarray, Cache], tuple[np.ndarray, Cache]]
"""One pass of a model over a batch, as a function

    (input_ids [batch, length], attention_mask [batch, past + length], position_ids [batch, length],
    cache) -> (logits float32 [batch, length, vocab_size], cache grown by `length`)

in which `past` is the length of the cache before. The three arrays are int64."""


class Runtime(ABC):
    """An artefact loaded in a real runtime, with one growing KV cache for one sequence.

    Attributes:
        name: The runtime's name on the command line and in reports.
        package: The Python module that does the work; its `__version__` is the runtime's.
        imports: The modules that opening needs, if they are more than `package`.
        format: The format whose artefacts it runs.
        device: "cpu" or "cuda".
        takes_batches: Whether the runtime can run padded batches; if not, `batch` raises.
        activations: The type in which activations pass between nodes, "float32" or "float16".
        place: The artefact's path, as errors name it.
        files: The artefact's files that this runtime has open; None if it has none.
    """

    name: str
    package: ClassVar[str]
    imports: ClassVar[Sequence[str]] = ()
    format: ClassVar[str]
    device: str
    takes_batches: bool = False
    activations: str = "float32"
    place: str = ""
    files: AdmittedFiles | None = None

    @classmethod
    def open(
        cls, path: Path, device: str = "cpu", threads: int | None = None, **options: Any
    ) -> Self:
        """Check the artefact at `path`, and load its admitted files on `device`, "cpu" or "cuda".

        `options` are further ones of the class's `load`.

        Raises:
            MissingRuntimeError: The package is not installed.
            UsageError: The device is not there or has no room. The CPU never stands in for it.
            InputError: The artefact is refused, or the runtime cannot load it.
        """
        opened = cls._open(path, partial(cls.load, device=device, threads=threads, **options))
        assert opened is not None
        return opened

    @classmethod
    def open_with_float_activations(
        cls, path: Path, device: str = "cpu", threads: int | None = None
    ) -> Self | None:
        """Open like `open`, with float activations; None if the runtime has no such mode for it."""
        load = partial(cls.load_with_float_activations, device=device, threads=threads)
        return cls._open(path, load)

    @classmethod
    def _open(cls, path: Path, load: Callable[[Path], Self | None]) -> Self | None:
        """Admit an artefact and load it; what is not loaded is closed."""
        files = cls.admit(path)
        try:
            with files.naming_artefact():
                runtime = load(files.path)
            if runtime is not None:
                runtime.files, runtime.place = files, str(path)
                return runtime
        except BaseException:
            files.close()
            raise
        files.close()
        return None

    @classmethod
    def admit(cls, path: Path) -> AdmittedFiles:
        """Check an artefact, and make the private folder that `load` gets (see Format.admit)."""
        return load_format(cls.format).admit(path)

    @classmethod
    @abstractmethod
    def load(cls, path: Path, device: str = "cpu", threads: int | None = None) -> Self:
        """Load what lies at `path`, which is a private folder of admitted files, or one in it.

        Raises as `open` does. The errors name the files as they are called there.
        """

    @classmethod
    def load_with_float_activations(
        cls, path: Path, device: str = "cpu", threads: int | None = None
    ) -> Self | None:
        """Load as `load`, so that quantized matrices are multiplied by unquantized activations.

        The weights stay quantized. Returns None if the runtime has no such mode on this device, or
        if the artefact has no matrices that the mode would affect. Raises what `load` raises.
        """
        return None

    @property
    def version(self) -> str:
        """The version of the package that does the work."""
        return str(importlib.import_module(self.package).__version__)

    @property
    @abstractmethod
    def n_positions(self) -> int:
        """The context length that the artefact says it has, in tokens."""

    @abstractmethod
    def reset(self) -> None:
        """Empty the cache."""

    @abstractmethod
    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Append tokens to the cache; logits after each of them, float32 [len(ids), vocab_size].

        Raises UsageError for more tokens than the context has room for, and for an id that the
        model has no row for.
        """

    def feed_last(self, ids: Sequence[int]) -> np.ndarray:
        """Append one or more tokens; logits after the last one alone, float32 [vocab_size]."""
        logits: np.ndarray = self.feed(ids)[-1]
        return logits

    def batch(self, sequences: Sequence[Sequence[int]], steps: int = 0) -> list[np.ndarray]:
        """Run sequences of different lengths as one left-padded batch.

        All but the last `steps` tokens of each sequence are prefilled at once, then the last ones
        are decoded one by one (see `run_left_padded`). The cache of `feed` is not touched.

        Args:
            sequences: The ids of each sequence.
            steps: How many tokens of each are decoded one by one.

        Returns:
            The logits of each sequence, float32 [its length, vocab_size].

        Raises:
            UsageError: The runtime takes one sequence at a time (`takes_batches` is False), or a
                sequence is longer than the context or has no more than `steps` tokens.
        """
        raise UsageError(f"{self.name} takes one sequence at a time here, no padded batch")

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Encode a text with the artefact's own tokenizer, without special tokens at its ends."""

    @abstractmethod
    def detokenize(self, ids: Sequence[int]) -> str:
        """Decode ids with the artefact's own tokenizer, special tokens included."""

    @property
    @abstractmethod
    def tokenizer_size(self) -> int:
        """The number of ids in the artefact's own tokenizer; logits past it are padding."""

    @property
    @abstractmethod
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids at which the artefact itself says that generation ends, the tokenizer's first."""

    @property
    def stopping_ids(self) -> frozenset[int]:
        """All ids at which the runtime ends a generation: the artefact's, and any of its own."""
        return frozenset(self.eos_token_ids)

    def check_length(self, total: int) -> None:
        """Raise UsageError if `total` tokens are more than the context length."""
        if total > self.n_positions:
            raise UsageError(
                f"{total} tokens are more than the model's context of {self.n_positions}"
            )

    def check_unchanged(self) -> None:
        """Raise InputError if a file of the artefact is not what it was when it was opened."""
        if self.files is not None:
            self.files.check_unchanged()

    def close(self) -> None:
        """Free the memory that the runtime holds; it cannot be used afterwards."""
        if self.files is not None:
            self.files.close()


def run_left_padded(
    run: Run[Cache], cache: Cache, sequences: Sequence[Sequence[int]], steps: int
) -> list[np.ndarray]:
    """Run sequences as one left-padded batch: prefill, then decode the last tokens one by one.

    The attention mask is 1 for tokens and 0 for padding. A token's position is the number of tokens
    before it, and that of padding is 0 (as in transformers, generation/utils.py).

    Args:
        run: One pass of the model over a batch.
        cache: An empty cache for `run`.
        sequences: The ids of each sequence.
        steps: How many tokens of each are decoded one by one.

    Returns:
        The logits of each sequence, float32 [its length, vocab_size].

    Raises:
        UsageError: A sequence has no more than `steps` tokens, so that none is left to prefill.
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
    # Padding is masked, so any id will do: 0, since the artefact's own padding id may have no row.
    tokens = np.zeros((len(sequences), width), dtype=np.int64)
    mask = np.zeros_like(tokens)
    for row, sequence in enumerate(sequences):
        tokens[row, width - len(sequence) :] = sequence
        mask[row, width - len(sequence) :] = 1
    positions = np.where(mask, mask.cumsum(axis=1) - 1, 0)
    parts, start = [], 0
    for end in range(width - steps, width + 1):
        columns = slice(start, end)
        logits, cache = run(tokens[:, columns], mask[:, :end], positions[:, columns], cache)
        parts.append(logits)
        start = end
    padded_logits = np.concatenate(parts, axis=1)
    return [row[width - length :] for row, length in zip(padded_logits, lengths, strict=True)]
