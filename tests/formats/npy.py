"""A format and a runtime that cgconvert knows nothing of: one .npy file for each tensor.

All that they need is in this module; see test_toy_format.py for the two lines that register them.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from cgconvert.codecs.encoding import F32
from cgconvert.errors import InputError, UsageError
from cgconvert.formats.base import OUT, Format, ThresholdRow
from cgconvert.formats.comparison import (
    SettingsDifferences,
    StoredArtefact,
    expected_tensors,
    pair_tensors,
)
from cgconvert.formats.headers import Headers, most_stored, tensor_lines
from cgconvert.formats.huggingface.checks import config_differences, tokenizer_differences
from cgconvert.formats.huggingface.config import codegen_config, from_codegen
from cgconvert.formats.read_options import ReadOptions, read_tokenizer
from cgconvert.io.admitted import AdmittedFiles, admitting
from cgconvert.io.strict_json import read_json
from cgconvert.model import forward
from cgconvert.model.decoder import Checkpoint, Decoder
from cgconvert.model.device import read_float32, torch_device
from cgconvert.model.dtype import FLOAT32
from cgconvert.model.tensor import LazyTensor, StoredTensor
from cgconvert.model.tensor_names import CODEGEN, named_tensors
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.model.tokenizer_files import TOKENIZER_FILES
from cgconvert.options import Option
from cgconvert.runtimes.runtime import Runtime
from cgconvert.sources.resolve import Source
from cgconvert.write.plan import FilePlan, Plan, lay_out

GROUPS = 4


class Npy(Format):
    """A folder of float32 arrays in CodeGen's own names, with config.json and tokenizer files."""

    name = "npy"
    command = "to-npy"
    help = "Write SOURCE as a folder of .npy files."
    options = (Option(name="suffix", default="npy", help="Last part of the folder's name."),)
    thresholds = {  # noqa: RUF012 - the class is never changed
        "float32": ThresholdRow(
            (1e-5, 1e-11, 1e-11, 2e-11), (2e-5, 1e-5), 1e-11, 1e-11, 1e-10, 1.0, 1.001, "as torch"
        )
    }

    def identify(self, path: Path) -> bool:
        return any(path.glob("*.npy"))

    def recognises(self, path: Path) -> bool:
        return self.identify(path)

    def read(self, source: Source, options: ReadOptions) -> Checkpoint:
        folder = source.path
        config = read_json(folder / "config.json")
        tokenizer, tokenizer_files = read_tokenizer(folder, options, source.name, config)
        arrays = sorted(folder.glob("*.npy"))
        return Checkpoint(
            name=source.name,
            path=folder,
            layout=self.name,
            config=config,
            decoder=self.decoder(folder),
            tokenizer=tokenizer,
            files=(*arrays, folder / "config.json", *tokenizer_files),
            origin=source.origin,
        )

    def describe(self, location: str, source: Source, options: ReadOptions) -> Headers:
        checkpoint = self.read(source, options)
        return Headers(
            checkpoint.name,
            self.name,
            checkpoint.geometry,
            checkpoint.tokenizer,
            tensor_lines(_arrays(source.path).values()),
            source.origin,
        )

    def plan(self, checkpoint: Checkpoint, output: Path | None = None, **options: Any) -> Plan:
        files = []
        for name, _, _, tensor in named_tensors(checkpoint.decoder, CODEGEN, mp_num=GROUPS):
            header = io.BytesIO()
            entry = {"descr": "<f4", "fortran_order": False, "shape": tuple(tensor.shape)}
            np.lib.format.write_array_header_1_0(header, entry)
            start = len(header.getvalue())
            tensors = lay_out([(name, tensor, F32)], start=start)
            files.append(FilePlan(f"{name}.npy", header.getvalue(), tensors))
        config = json.dumps(codegen_config(checkpoint.geometry, checkpoint.config)).encode()
        texts = {
            "config.json": config,
            **checkpoint.tokenizer.files(checkpoint.geometry.n_positions),
        }
        return Plan(
            source=checkpoint,
            output=output or self.default_output(checkpoint, **options),
            is_folder=True,
            format=self.name,
            type="float32",
            files=(*files, *(FilePlan(name, text) for name, text in texts.items())),
        )

    def default_output(self, checkpoint: Checkpoint, **options: Any) -> Path:
        return OUT / checkpoint.name / str(options.get("suffix", "npy"))

    def stored_type(self, path: Path) -> str:
        return most_stored(tensor_lines(_arrays(path).values()))

    def admit(self, path: Path) -> AdmittedFiles:
        with admitting(path, path) as files:
            files.copy("config.json")
            files.copy_present(TOKENIZER_FILES)
            for array in path.glob("*.npy"):
                files.link(array.name)
            self.decoder(files.folder)
            Tokenizer.load(files.folder)
        return files

    def decoder(self, artefact: Path) -> Decoder:
        path = artefact / "config.json"
        geometry = from_codegen(read_json(path), path, GROUPS)
        return CODEGEN.decoder(geometry, _arrays(artefact), str(artefact))

    def stored_artefact(self, artefact: Path, source: Decoder) -> StoredArtefact:
        config = read_json(artefact / "config.json")
        differences = config_differences(config, codegen_config(source.geometry, {}))
        expected = dict(expected_tensors(source, CODEGEN, GROUPS))
        return pair_tensors(_arrays(artefact), expected, CODEGEN, source.geometry, differences)

    def settings(self, artefact: Path, source: Checkpoint) -> SettingsDifferences:
        return SettingsDifferences([], list(tokenizer_differences(artefact, source)))


def _arrays(folder: Path) -> dict[str, LazyTensor]:
    return {path.stem: _array(path) for path in sorted(folder.glob("*.npy"))}


def _array(path: Path) -> StoredTensor:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
    if dtype != np.float32 or path.stat().st_size != start + 4 * math.prod(shape):
        raise InputError(f"{path}: not a whole array of float32")
    return StoredTensor(path, start, shape, FLOAT32, path.stem)


class TorchRuntime(Runtime):
    """Computes the whole sequence again at each step, with cgconvert's own layer."""

    name = "torch"
    package = "torch"
    format = "npy"

    def __init__(self, path: Path) -> None:
        self.device = "cpu"
        self.decoder, self.tokenizer = Npy().decoder(path), Tokenizer.load(path)
        self.layers = [
            forward.layer_weights(self.decoder, i, torch_device("cpu"))
            for i in range(len(self.decoder.layers))
        ]
        parts = ("wte", "ln_f_weight", "ln_f_bias", "head", "head_bias")
        self.ends = {
            part: read_float32(getattr(self.decoder, part), torch_device("cpu")) for part in parts
        }
        self.reset()

    @classmethod
    def load(cls, path: Path, device: str = "cpu", threads: int | None = None) -> Self:
        if device != "cpu":
            raise UsageError(f"device {device}: this runtime has the CPU alone")
        return cls(path)

    @property
    def n_positions(self) -> int:
        return self.decoder.geometry.n_positions

    @property
    def tokenizer_size(self) -> int:
        return self.tokenizer.size

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return (self.tokenizer.eos_token_id,)

    def reset(self) -> None:
        self.sequence: list[int] = []

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        self.check_length(len(self.sequence) + len(ids))
        self.sequence += ids
        ends, g = self.ends, self.decoder.geometry
        x = ends["wte"][self.sequence][None]
        tables = forward.rotary(g, len(self.sequence))
        for weights in self.layers:
            attention, mlp = forward.layer(g, weights, x, tables, lambda *_: None)
            x = x + attention + mlp + weights["fc_out_bias"]
        new = x[0, len(self.sequence) - len(ids) :]
        normed = forward.norm(new, ends["ln_f_weight"], ends["ln_f_bias"], g.layer_norm_epsilon)
        logits: np.ndarray = (normed @ ends["head"].t() + ends["head_bias"]).numpy()
        return logits

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids))
