"""What the headers of a checkpoint or an artefact contain, as `inspect` shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cgconvert.model.decoder import Geometry
from cgconvert.model.generation_config import GenerationConfig
from cgconvert.model.tensor import FirstColumns, LazyTensor, StoredTensor, TransposedTensor
from cgconvert.model.tokenizer import Tokenizer

__all__ = ["Headers", "TensorLine", "bytes_by_type", "most_stored", "tensor_lines"]


@dataclass(frozen=True)
class TensorLine:
    """A tensor as a file stores it: its logical `shape`, and `nbytes` in the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Headers:
    """What the headers of a checkpoint or an artefact contain, for `inspect`.

    `layout` names how it is stored, such as "torch" or "gguf"; `origin` is where it came from (Hub
    revision, archive, step). `generation` says where generation stops beside the tokenizer's eos
    token, and `notes` what reading did that the user should know.
    """

    name: str
    layout: str
    geometry: Geometry
    tokenizer: Tokenizer
    tensors: tuple[TensorLine, ...]
    origin: Mapping[str, Any]
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    notes: tuple[str, ...] = ()


def tensor_lines(tensors: Iterable[LazyTensor]) -> tuple[TensorLine, ...]:
    """Describe the tensors that a file stores, in whatever order of numbers.

    Lazy tensors of other kinds are left out.
    """
    return tuple(
        TensorLine(stored.name, str(tensor.dtype), tensor.shape,
                   tensor.nbytes)
        for tensor in tensors
        if isinstance(tensor, StoredTensor | TransposedTensor | FirstColumns)
        for stored in tensor.leaves()
    )  # fmt: skip


def most_stored(tensors: Iterable[TensorLine]) -> str:
    """Return the type in which most bytes are stored, "empty" if there are no tensors."""
    return next(iter(bytes_by_type(tensors)), "empty")


def bytes_by_type(tensors: Iterable[TensorLine]) -> dict[str, int]:
    """Count the stored bytes of each type, the most frequent type first."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.type] += tensor.nbytes
    return dict(sizes.most_common())
