"""The format huggingface: folders of safetensors for transformers and compatible engines."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgconvert.formats.base import OUT, Format, ThresholdRow
from cgconvert.options import FLOAT_ALIASES, ByteSize, Option, defaults

if TYPE_CHECKING:
    from cgconvert.formats.comparison import SettingsDifferences, StoredArtefact
    from cgconvert.formats.headers import Headers
    from cgconvert.formats.loader_files import Unchecked
    from cgconvert.formats.read_options import ReadOptions
    from cgconvert.io.admitted import AdmittedFiles
    from cgconvert.model.decoder import Checkpoint, Decoder
    from cgconvert.sources.resolve import Source
    from cgconvert.write.plan import Plan

__all__ = ["HuggingFace"]

OPTIONS = (
    Option(
        name="dtype",
        choices=("float16", "bfloat16", "float32"),
        aliases=FLOAT_ALIASES,
        default="float16",
        help="Type of the stored weights.",
    ),
    Option(
        name="layout",
        choices=("codegen", "gptj", "phi"),
        default="codegen",
        help="The class that loads it: CodeGenForCausalLM, GPTJForCausalLM or PhiForCausalLM.",
    ),
    Option(name="max_shard_size", type=ByteSize, default="5GB", help="Split larger weights."),
)

HELP = """\
Write SOURCE as Hugging Face safetensors with configuration, tokenizer and model card.

\b
Example:
  cgconvert to-hf checkpoints/codegen-350M-mono.tar.gz --layout phi
"""

#   runtime: relative, NMSE, KL, NMSE at the end; cache, batch; NMSE, KL, p99, sure, perplexity
THRESHOLDS: Mapping[str, ThresholdRow] = {
    "float32": ThresholdRow(
        (1e-5, 1e-11, 1e-11, 2e-11), (2e-5, 1e-5), 1e-11, 1e-11, 1e-10, 1.0, 1.001,
        "relative 2.4e-6, NMSE 5.6e-13, KL 3.7e-13, end 3.7e-12, cache 4.6e-6, batch 2.3e-6",
    ),
    "float16": ThresholdRow(
        (1e-5, 1e-11, 1e-11, 2e-11), (2e-5, 1e-5), 1e-11, 1e-11, 1e-10, 1.0, 1.001,
        "the reference's own weights, computed in float32: as float32",
    ),
    "bfloat16": ThresholdRow(
        (1e-5, 1e-11, 1e-11, 2e-11), (3e-5, 1e-5), 4e-4, 2e-4, 1e-3, 1.0, 1.005,
        "computed in float32; rounding float16 to bfloat16 costs NMSE 9.4e-5, KL 4.5e-5, p99 "
        "2.1e-4, perplexity 1.0009",
    ),
}  # fmt: skip
"""The docstring of cgconvert.verification.thresholds describes how the bounds were measured."""


class HuggingFace(Format):
    """Folders for CodeGen, GPT-J or Phi; written as safetensors, read from torch files too."""

    name = "huggingface"
    command = "to-hf"
    help = HELP
    options = OPTIONS
    thresholds = THRESHOLDS

    def recognises(self, path: Path) -> bool:
        from cgconvert.sources.weight_files import choose_weights, is_weight_file, list_names

        if path.is_file():
            return is_weight_file(path)
        return path.is_dir() and choose_weights(list_names(path)) is not None

    def identify(self, path: Path) -> bool:
        if not (path / "config.json").is_file():
            return False
        return any((*path.glob("*.safetensors"), *path.glob("*.safetensors.index.json")))

    def read(self, source: Source, options: ReadOptions) -> Checkpoint:
        from cgconvert.formats.huggingface import reader

        return reader.read(source, options)

    def describe(self, location: str, source: Source, options: ReadOptions) -> Headers:
        from cgconvert.formats.headers import Headers, tensor_lines
        from cgconvert.formats.huggingface import reader
        from cgconvert.formats.read_options import complete
        from cgconvert.sources.weight_files import is_weight_file

        checkpoint = complete(self.read(source, options), location, source, options)
        files = tuple(p for p in checkpoint.files if is_weight_file(p))
        tensors = reader.read_weights(files).values()
        return Headers(
            checkpoint.name,
            checkpoint.layout,
            checkpoint.geometry,
            checkpoint.tokenizer,
            tensor_lines(tensors),
            checkpoint.origin,
            checkpoint.generation,
            checkpoint.notes,
        )

    def plan(self, checkpoint: Checkpoint, output: Path | None = None, **options: Any) -> Plan:
        from cgconvert.formats.huggingface import writer

        path = output or self.default_output(checkpoint, **options)
        return writer.plan(checkpoint, path, **(defaults(OPTIONS) | options))

    def default_output(self, checkpoint: Checkpoint, **options: Any) -> Path:
        from cgconvert.formats.huggingface.layouts import LAYOUTS

        layout = LAYOUTS.get(options.get("layout", "codegen"), LAYOUTS["codegen"])
        return OUT / checkpoint.name / layout.folder

    def stored_type(self, path: Path) -> str:
        from cgconvert.formats.headers import most_stored, tensor_lines
        from cgconvert.formats.huggingface import reader
        from cgconvert.formats.huggingface.quantized import refuse_quantized

        tensors = reader.read_weights(reader.find_weights(path)[1])
        refuse_quantized(path, {}, tensors)
        return most_stored(tensor_lines(tensors.values()))

    def admit(self, path: Path) -> AdmittedFiles:
        from cgconvert.formats.huggingface.admission import admit_huggingface

        return admit_huggingface(path)

    def unchecked(self, artefact: Path, checked: Collection[Path] = ()) -> Unchecked | None:
        from cgconvert.formats.huggingface import folder_contents

        return folder_contents.unchecked(artefact)

    def stored_artefact(self, artefact: Path, source: Decoder) -> StoredArtefact:
        from cgconvert.formats.huggingface import checks

        return checks.stored_artefact(artefact, source)

    def decoder(self, artefact: Path) -> Decoder:
        from cgconvert.formats.huggingface import checks

        return checks.decoder(artefact)

    def settings(self, artefact: Path, source: Checkpoint) -> SettingsDifferences:
        from cgconvert.formats.huggingface import checks

        return checks.settings(artefact, source)
