"""The format gguf: one file for an unmodified llama.cpp."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cgconvert.formats.base import Format, ThresholdRow
from cgconvert.formats.gguf.type_choices import DEFAULT_TYPE, TYPE_ALIASES, TYPE_CHOICES
from cgconvert.model.dtype import BFLOAT16, FLOAT16, FLOAT32, DType
from cgconvert.options import Option

if TYPE_CHECKING:
    from cgconvert.formats.comparison import SettingsDifferences, StoredArtefact
    from cgconvert.formats.gguf.header import GgufHeader
    from cgconvert.formats.headers import Headers, TensorLine
    from cgconvert.formats.loader_files import Unchecked
    from cgconvert.formats.read_options import ReadOptions
    from cgconvert.io.admitted import AdmittedFiles
    from cgconvert.model.decoder import Checkpoint, Decoder
    from cgconvert.sources.resolve import Source
    from cgconvert.write.plan import Plan

__all__ = ["Gguf"]

SUFFIX = ".gguf"

OPTIONS = (
    Option(
        name="type",
        choices=TYPE_CHOICES,
        aliases=TYPE_ALIASES,
        default=DEFAULT_TYPE,
        help="Type of the matrices; norms and biases stay F32.",
    ),
)

HELP = """\
Write SOURCE as a GGUF file that an unmodified llama.cpp runs (architecture phi2).

Quantized types by the weights alone; `quantize` fits them to a text.

\b
Example:
  cgconvert to-gguf codegen-350M-mono --type Q8_0
"""


#   runtime: relative, NMSE, KL, NMSE at the end; cache, batch; NMSE, KL, p99, sure, perplexity
THRESHOLDS: Mapping[str, ThresholdRow] = {
    "F32": ThresholdRow(
        (4e-3, 1e-6, 5e-7, 1e-6), (5e-4, None), 1e-6, 5e-7, 2e-6, 1.0, 1.001,
        "llama.cpp's GELU is a table in float16: relative 8.9e-4, NMSE 1e-7, KL 4.7e-8, "
        "end 1.2e-7, p99 1.6e-7, cache 1.0e-4",
    ),
    "F16": ThresholdRow(
        (1.2e-2, 3e-6, 1.5e-6, 4e-6), (3e-3, None), 3e-6, 1.5e-6, 6e-6, 1.0, 1.001,
        "activations rounded to float16: relative 3e-3, NMSE 5.8e-7, KL 2.8e-7, end 8.8e-7, p99 "
        "1.1e-6, cache 7.4e-4",
    ),
    "BF16": ThresholdRow(
        (8e-2, 2e-4, 1e-4, 2e-4), (8e-3, None), 4e-4, 2e-4, 1e-3, 1.0, 1.005,
        "activations rounded to bfloat16: relative 2e-2, NMSE 3.4e-5, KL 1.6e-5, end 4.4e-5, cache "
        "2e-3; and the weights: NMSE 9.1e-5, KL 4.3e-5, p99 2e-4, perplexity 1.0005",
    ),
    "Q8_0": ThresholdRow(
        (0.3, 2e-3, 1e-3, 2.5e-3), (2e-2, None), 4e-3, 5e-3, 5e-2, 0.98, 1.02,
        "activations in 8 bits: relative 7.1e-2, NMSE 3.9e-4, KL 1.8e-4, end 4.8e-4, cache 1.9e-3; "
        "lost NMSE 9.6e-4, KL 4.6e-4 (embedded model 6.9e-5; published for Llama-3-8B 1.4e-3, "
        "llama.cpp tools/perplexity/README.md)",
    ),
    "Q6_K": ThresholdRow(
        (0.3, 2e-3, 1e-3, 2.5e-3), (4e-2, None), 3e-2, 1e-2, 1e-1, 0.97, 1.05,
        "activations as Q8_0; cache 8.9e-3; lost NMSE 6.5e-3, KL 1.4e-3, p99 4.3e-3 (published for "
        "Llama-3-8B KL 5.5e-3)",
    ),
    "Q5_K": ThresholdRow(
        (0.3, 2e-3, 1e-3, 2.5e-3), (4e-2, None), 0.1, 5e-2, 0.5, 0.95, 1.1,
        "cache 9.2e-3; lost NMSE 2.5e-2, KL 5.3e-3, p99 1.2e-2 (published for Llama-3-8B 1.7e-2)",
    ),
    "Q4_K": ThresholdRow(
        (0.3, 2e-3, 1e-3, 2.5e-3), (5e-2, None), 0.4, 0.15, 1.5, 0.9, 1.25,
        "cache 1.1e-2; lost NMSE 8.9e-2, KL 1.9e-2, p99 4.3e-2 (published for Llama-3-8B 4.3e-2)",
    ),
    "Q4_1": ThresholdRow(
        (0.3, 2e-3, 1e-3, 2.5e-3), (2e-2, None), 0.4, 0.3, 3.0, 0.9, 1.25,
        "lost NMSE 8.3e-2, KL 1.8e-2, p99 4.2e-2 (published for Llama-3-8B 7.2e-2)",
    ),
    "Q3_K": ThresholdRow(
        (0.3, 2e-3, 1e-3, 2.5e-3), (4e-2, None), 1.2, 0.5, 5.0, 0.8, 1.6,
        "cache 7.5e-3; lost NMSE 0.27, KL 5.7e-2, p99 0.1",
    ),
    "Q4_0": ThresholdRow(
        (0.3, 2e-3, 1e-3, 2.5e-3), (2e-2, None), 0.4, 0.3, 3.0, 0.9, 1.25,
        "activations as Q8_0, end 5.8e-4; lost NMSE 7.2e-2, KL 3.2e-2 (embedded model 6.6e-3; "
        "published for Llama-3-8B 7.2e-2 and a perplexity ratio of 1.07)",
    ),
}  # fmt: skip
"""The docstring of cgconvert.verification.thresholds describes how the bounds were measured."""


class Gguf(Format):
    """Files for llama.cpp; `TYPES` lists the types that are written."""

    name = "gguf"
    command = "to-gguf"
    help = HELP
    options = OPTIONS
    thresholds = THRESHOLDS
    unquantized_types: ClassVar[Mapping[str, DType]] = {
        "F32": FLOAT32,
        "F16": FLOAT16,
        "BF16": BFLOAT16,
    }

    max_eos_ids = 3  # eos, eot and eom
    template_names = re.compile(r"[A-Za-z0-9_.-]+")  # what can be part of a key

    def recognises(self, path: Path) -> bool:
        if path.is_file():
            return path.suffix == SUFFIX
        from cgconvert.formats.gguf.split import parts_of_one_model

        names = [file.name for file in path.glob(f"*{SUFFIX}")]
        return len(names) == 1 or parts_of_one_model(names)

    def after_writing(self, source: Checkpoint, output: Path) -> None:
        """Update the model card of the folder; see model_card.py."""
        from cgconvert.formats.gguf.model_card import update_card

        update_card(source, output)

    def identify(self, path: Path) -> bool:
        return path.is_file() and path.suffix == SUFFIX

    def read(self, source: Source, options: ReadOptions) -> Checkpoint:
        from cgconvert.formats.gguf import reader

        return options.with_tokenizer(reader.read(_file(source.path), source.name))

    def describe(self, location: str, source: Source, options: ReadOptions) -> Headers:
        from cgconvert.formats.gguf import reader
        from cgconvert.formats.gguf.split import read_model_header
        from cgconvert.formats.headers import Headers
        from cgconvert.model.tokenizer import Tokenizer

        path = _file(source.path)
        header, _ = read_model_header(path)
        reader.check_architecture(path, header)
        tokenizer = reader.tokenizer(path, header)
        generation = reader.generation(path, header, tokenizer)
        return Headers(
            str(header.metadata.get("general.name", source.name)),
            self.name,
            reader.geometry(path, header),
            Tokenizer.load(options.tokenizer) if options.tokenizer else tokenizer,
            _lines(header),
            source.origin,
            generation,
            (*tokenizer.notes, *generation.notes),
        )

    def plan(self, checkpoint: Checkpoint, output: Path | None = None, **options: Any) -> Plan:
        """See Format.plan. The arguments `fixed`, `adjusted` and `importance` of `writer.plan` are
        accepted too."""
        from cgconvert.formats.gguf import writer

        path = writer.output_path(checkpoint, output, options.get("type", DEFAULT_TYPE))
        return writer.plan(checkpoint, path, **options)

    def default_output(self, checkpoint: Checkpoint, **options: Any) -> Path:
        from cgconvert.formats.gguf import writer

        return writer.output_path(checkpoint, None, options.get("type", DEFAULT_TYPE))

    def stored_type(self, path: Path) -> str:
        from cgconvert.formats.gguf.type_names import stored_name
        from cgconvert.formats.headers import most_stored

        header = _whole_header(path)
        most = most_stored(_lines(header))
        return most if most in self.unquantized_types else stored_name(header) or most

    def bounds_type(self, path: Path) -> str:
        from cgconvert.formats.headers import most_stored

        return most_stored(_lines(_whole_header(path)))

    def is_type_name(self, name: str) -> bool:
        from cgconvert.formats.gguf.type_names import is_type_name

        return is_type_name(name) or name in self.thresholds

    def admit(self, path: Path) -> AdmittedFiles:
        from cgconvert.formats.gguf.admission import admit_gguf

        return admit_gguf(path)

    def unchecked(self, artefact: Path, checked: Collection[Path] = ()) -> Unchecked | None:
        from cgconvert.formats.gguf import folder_contents

        return folder_contents.unchecked(artefact)

    def stored_artefact(self, artefact: Path, source: Decoder) -> StoredArtefact:
        from cgconvert.formats.gguf import checks

        return checks.stored_artefact(artefact, source)

    def decoder(self, artefact: Path) -> Decoder:
        from cgconvert.formats.gguf import reader

        return reader.decoder(artefact)

    def kept_eos_ids(self, source: Checkpoint) -> tuple[int, ...]:
        from cgconvert.formats.gguf import checks

        return checks.kept_eos_ids(source)

    def settings(self, artefact: Path, source: Checkpoint) -> SettingsDifferences:
        from cgconvert.formats.gguf import checks

        return checks.settings(artefact, source)


def _file(path: Path) -> Path:
    """Return the file itself, or the only GGUF file of a folder, or the first part of a model."""
    return path if path.is_file() else min(path.glob(f"*{SUFFIX}"))


def _whole_header(path: Path) -> GgufHeader:
    """Read the header of a file; raises InputError if it is one part of a model."""
    from cgconvert.formats.gguf.header import read_header
    from cgconvert.formats.gguf.split import refuse_split

    header = read_header(path)
    refuse_split(path, header)
    return header


def _lines(header: GgufHeader) -> tuple[TensorLine, ...]:
    """Describe the tensors of a model."""
    from cgconvert.formats.headers import TensorLine

    return tuple(TensorLine(t.name, t.type, t.shape, t.nbytes) for t in header.tensors)
