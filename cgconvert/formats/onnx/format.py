"""The format onnx: folders for onnxruntime, onnxruntime-genai, optimum and transformers.js."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgconvert.codecs.matmul_nbits_choices import ACCURACY_LEVELS, BLOCK_SIZES
from cgconvert.errors import UsageError
from cgconvert.formats.base import Format, ThresholdRow
from cgconvert.formats.onnx.choices import CLIENTS, TARGETS
from cgconvert.formats.onnx.files import artefacts, folder_of, graphs
from cgconvert.options import FLOAT_ALIASES, Option

if TYPE_CHECKING:
    from cgconvert.formats.comparison import SettingsDifferences, StoredArtefact
    from cgconvert.formats.headers import Headers
    from cgconvert.formats.loader_files import Unchecked
    from cgconvert.formats.read_options import ReadOptions
    from cgconvert.io.admitted import AdmittedFiles
    from cgconvert.model.decoder import Checkpoint, Decoder
    from cgconvert.sources.resolve import Source
    from cgconvert.write.plan import Plan

__all__ = ["MATRIX_BLOCKS", "Onnx"]

MATRIX_BLOCKS = (
    Option(
        name="block_size",
        type=int,
        choices=BLOCK_SIZES,
        help="ONNX: weights that share a scale, 16 to 256; 32 unless given.",
    ),
    Option(
        name="symmetric",
        type=bool,
        help="ONNX: 4 bits without zero points, the numbers of GGUF's Q4_0. 8 bits have none.",
    ),
    Option(
        name="accuracy_level",
        type=int,
        choices=ACCURACY_LEVELS,
        help="ONNX: compute in int8 (4, as without it), float32 (1) or what suits (0).",
    ),
)
"""Options of ONNX's quantized matrices."""

OPTIONS = (
    Option(
        name="dtype",
        choices=("float32", "float16"),
        aliases=FLOAT_ALIASES,
        default="float32",
        help="Type of weights and arithmetic.",
    ),
    Option(name="bits", type=int, choices=(4, 8), help="Quantize the matrices."),
    *MATRIX_BLOCKS,
    Option(
        name="client",
        choices=CLIENTS,
        default="any",
        help="transformers.js: it asks for the last logits alone; optimum cannot load such a "
        "graph.",
    ),
    Option(
        name="target",
        choices=TARGETS,
        default="cpu",
        help='cuda, with `dtype="float16"`: for flash attention; batches are padded after the '
        "prompt.",
    ),
)

HELP = """\
Write SOURCE as an ONNX decoder with KV-cache inputs and outputs.

The folder is a whole repository: onnxruntime, onnxruntime-genai, optimum and transformers.js
load it as it is.

\b
Example:
  cgconvert to-onnx codegen-6B-mono
"""


#   runtime: relative, NMSE, KL, NMSE at the end; cache, batch; NMSE, KL, p99, sure, perplexity
THRESHOLDS: Mapping[str, ThresholdRow] = {
    "float32": ThresholdRow(
        (1e-4, 5e-11, 5e-11, 1e-9), (2e-5, 1e-5), 5e-11, 5e-11, 5e-10, 1.0, 1.001,
        "relative 2.5e-5 and at the end 2.4e-10, where the graph's rotary tables are exact and "
        "the float32 angles of transformers and of the reference are not; NMSE 9.9e-12, KL 4.7e-12",
    ),
    "float16": ThresholdRow(
        (1.3e-2, 5e-6, 5e-6, 7e-6), (3e-3, 1.2e-2), 5e-6, 5e-6, 2e-5, 1.0, 1.001,
        "computed in float16: relative 3.1e-3, NMSE 1.1e-6, KL 6.2e-7, end 1.4e-6, p99 3.3e-6, "
        "cache 5.4e-4, batch 2.7e-3",
    ),
    "int8": ThresholdRow(
        (0.3, 2e-3, 1e-3, 2e-3), (3e-2, 3e-2), 4e-3, 5e-3, 5e-2, 0.98, 1.02,
        "activations in 8 bits: relative 7.6e-2, NMSE 3.9e-4, KL 1.8e-4, end 4.1e-4, cache 6.7e-3, "
        "batch 7e-3; lost NMSE 9.5e-4, KL 4.5e-4 (embedded model 6.8e-5); KL as Q8_0",
    ),
    "int4": ThresholdRow(
        (0.3, 2e-3, 1e-3, 2e-3), (3e-2, 3e-2), 0.3, 0.15, 1.5, 0.9, 1.25,
        "activations as int8; lost NMSE 4.4e-2, KL 2e-2 (embedded model 1.1e-3); KL as Q4_0",
    ),
}  # fmt: skip
"""The docstring of cgconvert.verification.thresholds describes how the bounds were measured."""


class Onnx(Format):
    """A decoder graph with KV-cache inputs and outputs, in floats or in 4 or 8 bits."""

    name = "onnx"
    command = "to-onnx"
    help = HELP
    options = OPTIONS
    thresholds = THRESHOLDS

    def recognises(self, path: Path) -> bool:
        return self.identify(path) or (path.is_file() and bool(graphs(path)))

    def identify(self, path: Path) -> bool:
        named = graphs(path)
        return bool(named) and (folder_of(named[0]) / "config.json").is_file()

    def artefacts(self, path: Path) -> list[Path]:
        return artefacts(path)

    def read(self, source: Source, options: ReadOptions) -> Checkpoint:
        from cgconvert.formats.onnx import reader

        parts = artefacts(source.path)
        path = parts[0] if len(parts) == 1 else source.path
        return options.with_tokenizer(reader.read(path, source.name))

    def describe(self, location: str, source: Source, options: ReadOptions) -> Headers:
        from cgconvert.formats.headers import Headers, tensor_lines
        from cgconvert.formats.huggingface.config import from_codegen
        from cgconvert.formats.onnx import reader
        from cgconvert.model.generation_config import read_generation_config
        from cgconvert.model.tokenizer import Tokenizer

        graph = reader.find_graph(source.path)
        folder = reader.folder_of(graph)
        config_path = options.config or folder / "config.json"
        config = reader.read_config(config_path)
        geometry = from_codegen(config, config_path, 1)
        tokenizer = Tokenizer.load(options.tokenizer or folder)
        generation = read_generation_config(folder, config, config_path, tokenizer)
        return Headers(
            source.name,
            self.name,
            geometry,
            tokenizer,
            tensor_lines(reader.stored_tensors(graph).values()),
            source.origin,
            generation,
            (*tokenizer.notes, *generation.notes),
        )

    def plan(self, checkpoint: Checkpoint, output: Path | None = None, **options: Any) -> Plan:
        """See Format.plan. `block_size`, `symmetric` and `accuracy_level` are options of `bits`;
        an option that is None counts as absent."""
        from cgconvert.formats.onnx import writer

        options = {name: value for name, value in options.items() if value is not None}
        blocks = [option.name for option in MATRIX_BLOCKS if option.name in options]
        if blocks and "bits" not in options:
            raise UsageError(f"`{blocks[0]}` is an option of quantized matrices: add `bits=4` or 8")
        path = output or self.default_output(checkpoint, **options)
        return writer.plan(checkpoint, path, **options)

    def default_output(self, checkpoint: Checkpoint, **options: Any) -> Path:
        from cgconvert.formats.onnx import writer

        in_path = ("dtype", "bits", "client", "target")
        return writer.default_path(
            checkpoint, **{name: options[name] for name in in_path if name in options}
        )

    def stored_type(self, path: Path) -> str:
        from cgconvert.formats.onnx import reader

        return reader.stored_type(reader.find_graph(path))

    def admit(self, path: Path) -> AdmittedFiles:
        from cgconvert.formats.onnx.admission import admit_onnx

        return admit_onnx(path)

    def unchecked(self, artefact: Path, checked: Collection[Path] = ()) -> Unchecked | None:
        from cgconvert.formats.onnx import folder_contents

        return folder_contents.unchecked(artefact, checked)

    def stored_artefact(self, artefact: Path, source: Decoder) -> StoredArtefact:
        from cgconvert.formats.onnx import checks

        return checks.stored_artefact(artefact, source)

    def decoder(self, artefact: Path) -> Decoder:
        from cgconvert.formats.onnx import reader

        return reader.decoder(artefact)

    def settings(self, artefact: Path, source: Checkpoint) -> SettingsDifferences:
        from cgconvert.formats.onnx import checks

        return checks.settings(artefact, source)
