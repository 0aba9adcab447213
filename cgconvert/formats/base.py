"""The interface of a format: how its artefacts are recognised, read, planned, shown and checked.

A format is a folder (or a module) with one subclass of `Format`, or of `SourceFormat` if it is only
read, and a line in `cgconvert.formats.registry`. All other code uses formats through this interface
and knows none of them by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from cgconvert.formats.comparison import SettingsDifferences, StoredArtefact
from cgconvert.formats.read_options import ReadOptions
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.model.decoder import Decoder, Geometry
from cgconvert.model.tensor import LazyTensor, Stored
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.options import Option
from cgconvert.sources.resolve import Source
from cgconvert.write.plan import Plan

__all__ = [
    "OUT",
    "Format",
    "Headers",
    "SourceFormat",
    "TensorLine",
    "ThresholdRow",
    "bytes_by_type",
    "most_stored",
    "tensor_lines",
]

OUT = Path("out")
"""The folder of artefacts for which the user names no output."""


@dataclass(frozen=True)
class TensorLine:
    """A tensor as stored: `shape` in elements, `nbytes` in the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Headers:
    """A checkpoint or an artefact as its headers describe it, for `inspect`.

    `layout` is how it is stored, `origin` where it came from (Hub revision, archive, step).
    """

    name: str
    layout: str
    geometry: Geometry
    tokenizer: Tokenizer
    tensors: tuple[TensorLine, ...]
    origin: Mapping[str, Any]


ARITHMETIC = (
    "runtime.relative_error", "runtime.nmse", "runtime.kl_mean", "runtime.context_end",
)  # fmt: skip
STEPS = ("cache", "batch")

REPORTED = ("logits.top1", "logits.top5")
"""Not judged unless a bound is given: on flat logits, as random weights have, agreement falls with
any change at all (Q4_0: 0.6 on a model it costs a KL of 0.006)."""


@dataclass(frozen=True)
class ThresholdRow:
    """Bounds of one type; None is reported and not judged.

    `arithmetic` is the runtime's own: relative error, NMSE and mean KL against a reference made of
    the stored weights, and the NMSE there at the context's end. `steps` are relative errors of the
    artefact against itself: in pieces through its cache, in a padded batch. The other bounds are
    what the type itself costs, against the source. `seen` records the measurements they rest on.
    """

    arithmetic: tuple[float, float, float, float]
    steps: tuple[float, float | None]
    nmse: float
    kl_mean: float
    kl_p99: float
    top1_sure: float
    perplexity_ratio: float
    seen: str

    def bounds(self) -> dict[str, float | None]:
        """The bounds by name of check."""
        return {
            **dict(zip(ARITHMETIC, self.arithmetic, strict=True)),
            **dict(zip(STEPS, self.steps, strict=True)),
            "logits.nmse": self.nmse,
            "logits.kl_mean": self.kl_mean,
            "logits.kl_p99": self.kl_p99,
            "logits.top1_sure": self.top1_sure,
            "logits.perplexity_ratio": self.perplexity_ratio,
            "generation": 0,
            **dict.fromkeys(REPORTED),
        }


class SourceFormat(ABC):
    """How checkpoints of one kind are recognised and read."""

    name: ClassVar[str]
    has_steps: ClassVar[bool] = False
    """Whether a source holds several steps of one training run, to choose from."""

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Whether a file or folder is a source of this format, by names of files alone."""

    @abstractmethod
    def read(self, source: Source, options: ReadOptions) -> Checkpoint:
        """Read the headers of a source.

        Raises InputError where it is broken, quantized or not a CodeGen.
        """

    @abstractmethod
    def describe(self, location: str, source: Source, options: ReadOptions) -> Headers:
        """Read what `inspect` shows of a source or an artefact, a quantized one too.

        `location` is how the user named it. Raises InputError where its headers are broken.
        """


class Format(SourceFormat):
    """A kind of artefact: what is written, verified and run, and can be read as a source."""

    command: ClassVar[str]
    """Name of the command and of the recipe step that write it, such as to-gguf."""

    help: ClassVar[str]
    """The text of the command's `--help`: a sentence, and an example after `\\b`."""

    options: ClassVar[tuple[Option, ...]]
    """The conversion's own options: the keyword arguments of `plan`."""

    thresholds: ClassVar[Mapping[str, ThresholdRow]]
    """Verification bounds by stored type, as `stored_type` names it."""

    unquantized_types: ClassVar[Mapping[str, torch.dtype]] = {
        "float32": torch.float32,
        "float16": torch.float16,
        "bfloat16": torch.bfloat16,
    }
    """Types that are not quantized, as `stored_type` names them, in the order in which they are
    preferred as a source: float32 loses nothing, float16 rounds less than bfloat16."""

    @abstractmethod
    def identify(self, path: Path) -> bool:
        """Whether a file or folder is an artefact of this format, by names of files alone."""

    @abstractmethod
    def plan(self, checkpoint: Checkpoint, output: Path | None = None, **options: Any) -> Plan:
        """Plan an artefact at `output`, else at `default_output`; nothing is written.

        Raises UsageError for options that do not exist or do not go together, InputError where
        the model does not fit the format.
        """

    @abstractmethod
    def default_output(self, checkpoint: Checkpoint, **options: Any) -> Path:
        """The output of a plan with these options where the user names none."""

    @abstractmethod
    def stored_type(self, path: Path) -> str:
        """The type that most bytes of an artefact are stored as, by its headers, not its manifest.

        Raises InputError where they are broken.
        """

    @abstractmethod
    def admit(self, path: Path) -> None:
        """Check that an artefact is of the kind that cgconvert writes.

        Runtimes believe files: llama.cpp aborts the process on a key of the wrong type,
        onnxruntime follows paths, onnxruntime-genai loads libraries that a configuration names,
        transformers code. So none gets an artefact that was not admitted. Whether its numbers are
        right is not judged here: `verify` runs wrong models to say how wrong they are.

        Raises InputError where it is not of that kind.
        """

    @abstractmethod
    def stored(self, artefact: Path, source: Decoder) -> StoredArtefact:
        """Put the tensors of an artefact beside those it should hold; only headers are read.

        Raises InputError where it cannot be read at all.
        """

    @abstractmethod
    def decoder(self, artefact: Path) -> Decoder:
        """The model that an artefact's own headers and weights make, quantized ones decoded.

        Raises InputError where they make none.
        """

    @abstractmethod
    def settings(self, artefact: Path, source: Checkpoint) -> SettingsDifferences:
        """Compare token ids, generation settings and tokenizer files with the source's.

        No logits show these. A wrong id stops a text too late, a penalty changes what is
        generated, a white-space token marked special is lost in decoding; and each library reads
        other files, so what one runtime makes of a text says nothing of the next one's. A file
        that is absent is no mistake where another holds the same.

        Raises InputError where a file cannot be read at all.
        """


def tensor_lines(tensors: Iterable[LazyTensor]) -> tuple[TensorLine, ...]:
    """Describe tensors that lie in a file as plain numbers."""
    return tuple(
        TensorLine(tensor.name, str(tensor.dtype).removeprefix("torch."), tensor.shape,
                   tensor.nbytes)
        for tensor in tensors
        if isinstance(tensor, Stored)
    )  # fmt: skip


def most_stored(tensors: Iterable[TensorLine]) -> str:
    """The type that most bytes of these tensors are stored as; "empty" where there are none."""
    return next(iter(bytes_by_type(tensors)), "empty")


def bytes_by_type(tensors: Iterable[TensorLine]) -> dict[str, int]:
    """Stored bytes by type, the most first."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.type] += tensor.nbytes
    return dict(sizes.most_common())
