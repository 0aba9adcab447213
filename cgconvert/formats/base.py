"""The interface of a format: how its artefacts are recognised, read, planned, shown and checked.

A format is a folder (or a module) with one subclass of `Format`, or of `SourceFormat` if it is only
read, and a line in `cgconvert.formats.registry`. All other code uses formats through this interface
and knows none of them by name.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cgconvert.model.dtype import BFLOAT16, FLOAT16, FLOAT32, DType
from cgconvert.options import Option

if TYPE_CHECKING:  # --help needs a format's options, and nothing that brings numpy
    from cgconvert.formats.comparison import SettingsDifferences, StoredArtefact
    from cgconvert.formats.headers import Headers
    from cgconvert.formats.loader_files import Unchecked
    from cgconvert.formats.read_options import ReadOptions
    from cgconvert.io.admitted import AdmittedFiles
    from cgconvert.model.decoder import Checkpoint, Decoder
    from cgconvert.sources.resolve import Source
    from cgconvert.write.plan import Plan

__all__ = ["OUT", "Format", "SourceFormat", "ThresholdRow"]

OUT = Path("out")
"""The parent folder of artefacts if the user gives no output path."""


ARITHMETIC = (
    "runtime.relative_error", "runtime.nmse", "runtime.kl_mean", "runtime.context_end",
)  # fmt: skip
STEPS = ("cache", "batch")

REPORTED = ("logits.top1", "logits.top5")
"""Checks that are reported without a bound, unless the user gives one. Random weights have flat
logits, and then any change lowers the agreement: to 0.6 with Q4_0, whose KL there is only 0.006."""


@dataclass(frozen=True)
class ThresholdRow:
    """The bounds of one stored type; a check whose bound is None is reported and cannot fail.

    Attributes:
        arithmetic: bounds on the runtime's own error, against a reference that is computed from
            the stored weights: relative error, NMSE, mean KL, and NMSE at the end of the context.
        steps: bounds on the relative error of the artefact against itself: if the text is fed in
            pieces through the KV cache, and if it is part of a padded batch.
        nmse, kl_mean, kl_p99, top1_sure, perplexity_ratio: bounds on what the type itself loses,
            against the source.
        seen: the measurements that the bounds are based on.
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
        """Return the bounds by the name of the check."""
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
    """A kind of checkpoint that can be read, such as the files that one training program writes."""

    name: ClassVar[str]
    has_steps: ClassVar[bool] = False
    """Whether a source can contain several steps of one training run; the user chooses one."""

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Return whether a path can be read as this format; only file names are looked at.

        A source may have forms that `identify` does not accept, such as weights that cgconvert
        reads and does not write, or a folder that contains the artefact.
        """

    @abstractmethod
    def read(self, source: Source, options: ReadOptions) -> Checkpoint:
        """Read a source; only headers are read, the weights are lazy.

        Raises InputError if it is broken, quantized or not a CodeGen.
        """

    @abstractmethod
    def describe(self, location: str, source: Source, options: ReadOptions) -> Headers:
        """Read what `inspect` shows of a source or of an artefact, which may be quantized.

        `location` is the path or name that the user gave. Raises InputError if its headers are
        broken.
        """


class Format(SourceFormat):
    """A kind of artefact: it is written, verified and run, and can be read as a source."""

    command: ClassVar[str]
    """Name of the command and of the recipe step that write the format, such as to-gguf."""

    help: ClassVar[str]
    """The text of the command's `--help`: a sentence, and an example after `\\b`."""

    options: ClassVar[tuple[Option, ...]]
    """The conversion's own options: the keyword arguments of `plan`."""

    thresholds: ClassVar[Mapping[str, ThresholdRow]]
    """Verification bounds by stored type, as `bounds_type` names it."""

    unquantized_types: ClassVar[Mapping[str, DType]] = {
        "float32": FLOAT32,
        "float16": FLOAT16,
        "bfloat16": BFLOAT16,
    }
    """Types that are not quantized, as `stored_type` names them, in the order in which they are
    preferred as a source: float32 loses nothing, float16 rounds less than bfloat16."""

    max_eos_ids: ClassVar[int | None] = None
    """The most ids at which generation stops that an artefact can name; None for any number."""

    template_names: ClassVar[re.Pattern[str] | None] = None
    """The names that a chat template can have in an artefact; None for any name."""

    def after_writing(self, source: Checkpoint, output: Path) -> None:
        """Do what an artefact of this format at `output` needs once it is complete; else nothing.

        What is done may fail without harm to the artefact.
        """
        return

    @abstractmethod
    def identify(self, path: Path) -> bool:
        """Return whether a path is an artefact of this format; only file names are looked at."""

    def artefacts(self, path: Path) -> list[Path]:
        """List the artefacts that a path stands for; `identify` has accepted the path.

        A path may name a part of an artefact, or a folder that holds several.
        """
        return [path]

    @abstractmethod
    def plan(self, checkpoint: Checkpoint, output: Path | None = None, **options: Any) -> Plan:
        """Plan an artefact at `output`, or at `default_output` if it is None; nothing is written.

        Raises UsageError for options that do not exist or cannot be combined, InputError if the
        model does not fit the format.
        """

    @abstractmethod
    def default_output(self, checkpoint: Checkpoint, **options: Any) -> Path:
        """Return the path that `plan` uses for these options if the user gives none."""

    @abstractmethod
    def stored_type(self, path: Path) -> str:
        """Return the name of an artefact's type, such as "Q8_0", "4.85bpw" or "float16".

        It is read from the headers, not from the manifest. Raises InputError if they are broken.
        """

    def bounds_type(self, path: Path) -> str:
        """Return the type whose bounds hold for an artefact: that in which most bytes are stored.

        It is a key of `thresholds`, unless none is known. Raises as `stored_type`.
        """
        return self.stored_type(path)

    def is_type_name(self, name: str) -> bool:
        """Return whether `stored_type` can return this name."""
        return name in self.thresholds

    @abstractmethod
    def admit(self, path: Path) -> AdmittedFiles:
        """Open the files of an artefact that a runtime may have, and check them.

        They have to contain only what cgconvert writes. What is checked lies in the private folder
        that is returned and that the runtime opens (see `AdmittedFiles`); the caller closes it.

        Runtimes trust files: llama.cpp aborts the process on a key of the wrong type, onnxruntime
        follows paths, and a configuration can make onnxruntime-genai load libraries and
        transformers run code. So a runtime opens only artefacts that passed this check. It does
        not judge whether the numbers are right: `verify` runs wrong models to measure their error.

        Raises InputError if the artefact contains anything else.
        """

    def unchecked(self, artefact: Path, checked: Collection[Path] = ()) -> Unchecked | None:
        """List what lies in an artefact's folder and was not checked; None if it has no folder.

        A program that opens the folder may take such a file in place of the artefact's own.

        Args:
            artefact: The file or folder.
            checked: The artefacts that are checked together with it; they belong to its folder.

        Raises:
            InputError: A file that has to be read for this is broken.
        """
        return None

    @abstractmethod
    def stored_artefact(self, artefact: Path, source: Decoder) -> StoredArtefact:
        """Pair the tensors of an artefact with those that it should contain; only headers are read.

        Raises InputError if it cannot be read at all.
        """

    @abstractmethod
    def decoder(self, artefact: Path) -> Decoder:
        """Read the model in an artefact from its own headers and weights.

        Quantized weights are decoded when they are read. Raises InputError if the artefact is not
        a complete CodeGen.
        """

    def kept_eos_ids(self, source: Checkpoint) -> tuple[int, ...]:
        """Return those ids at which a source stops that an artefact can name."""
        return source.eos_token_ids

    @abstractmethod
    def settings(self, artefact: Path, source: Checkpoint) -> SettingsDifferences:
        """Compare token ids, generation settings and tokenizer files with the source's.

        Comparing logits does not detect such faults: a wrong id stops a text too late, a penalty
        changes what is generated, a white-space token that is marked special is lost in decoding.
        Each library reads different files, so one runtime does not detect the faults of another
        one's files. A file may be absent if another file contains the same.

        Raises InputError if a file cannot be read at all.
        """
