"""Every parser with a changed valid input: it returns or raises an InputError, in time."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cgconvert.cli import recipe
from cgconvert.errors import CgconvertError, InputError, UsageError
from cgconvert.formats.gguf.admission import admit_gguf
from cgconvert.formats.gguf.header import read_header
from cgconvert.formats.gguf.imatrix import encoded, read_imatrix
from cgconvert.formats.huggingface import config, reader
from cgconvert.formats.huggingface import safetensors_reader as safetensors
from cgconvert.formats.huggingface import torch_reader as torch_zip
from cgconvert.formats.huggingface.state_dict import find_state_dict
from cgconvert.formats.huggingface.torch_globals import RefusedError
from cgconvert.formats.huggingface.torch_pickle import parse
from cgconvert.formats.jaxformer import reader as jaxformer
from cgconvert.formats.onnx import reader as onnx
from cgconvert.formats.onnx.admission import admit_genai, admit_onnx
from cgconvert.io.strict_json import read_json
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.sources import tarball
from cgconvert.write import manifest
from cgconvert.write.hashing import checked_sha256
from tests.faults.mutated_bytes import Choose, mutated_bytes
from tests.faults.mutated_json import mutated_json
from tests.faults.random_recipe import random_recipe
from tests.faults.small_model import small_decoder, small_imatrix
from tests.faults.valid_inputs import ValidInputs
from tests.support.imatrices import legacy

__all__ = ["PARSERS", "Parser", "ParserFolder"]

CPU_SECONDS = 5.0
"""Limit of CPU time for one input. Elapsed time would depend on how busy the machine is."""


@dataclass(frozen=True)
class Parser:
    """A parser `read`, the kind of valid input it gets, and the file in it that `make` changes."""

    kind: str
    file: str
    read: Callable[[Path], object]
    make: Callable[[bytes, Choose], bytes] = mutated_bytes


def _pickle(path: Path) -> None:
    try:
        find_state_dict(parse(path.read_bytes()))
    except RefusedError as error:
        raise InputError(str(error)) from None


def _folder(path: Path) -> None:
    reader.read_weights(reader.find_weights(path.parent)[1])


def _manifest(path: Path) -> None:
    manifest.find_manifest(path.parent)


def _training(path: Path) -> None:
    jaxformer.geometry_of(read_json(path), path, None)


def _imatrix(path: Path) -> None:
    read_imatrix(path, small_decoder())


def _json(seed: bytes, choose: Choose) -> bytes:
    return (mutated_json if choose(0, 1) else mutated_bytes)(seed, choose)


def _recipe(seed: bytes, choose: Choose) -> bytes:
    return mutated_bytes(seed, choose) if choose(0, 2) else random_recipe(choose)


PARSERS: Mapping[str, Parser] = {
    "pickle": Parser("pickle", "data.pkl", _pickle),
    "zip": Parser("torch", "source/pytorch_model.bin", torch_zip.tensors),
    "zip-crc": Parser("torch", "source/pytorch_model.bin", checked_sha256),
    "npz": Parser("jaxformer", "source/1000/model/0.npz", jaxformer.leaves),
    "tar": Parser("tar", "source.tar.gz", tarball.unpack),
    "safetensors": Parser("safetensors", "source/model.safetensors", safetensors.tensors),
    "index": Parser("safetensors-sharded", "source/model.safetensors.index.json", _folder, _json),
    "gguf": Parser("gguf", "source.gguf", read_header),
    "gguf-llama": Parser("gguf", "source.gguf", lambda p: admit_gguf(p).close()),
    "onnx": Parser("onnx", "source/onnx/model.onnx", onnx.stored_tensors),
    "onnx-run": Parser("onnx-int4", "source/onnx/model_q4.onnx", lambda p: admit_onnx(p).close()),
    "genai": Parser("onnx", "source/genai_config.json",
                    lambda p: admit_genai(p.parent).close(), _json),
    "config": Parser("safetensors", "source/config.json",
                     lambda p: config.from_codegen(read_json(p), p, None), _json),
    "gptj": Parser("gptj", "source/config.json",
                   lambda p: config.from_gptj(read_json(p), p), _json),
    "phi": Parser("phi", "source/config.json", lambda p: config.from_phi(read_json(p), p), _json),
    "training": Parser("training", "config.json", _training, _json),
    "manifest": Parser("hf", "source/cgconvert.json", _manifest, _json),
    "recipe": Parser("recipe", "recipe.yaml", recipe.load, _recipe),
    "tokenizer": Parser("tokenizer", "tokenizer.json", lambda p: Tokenizer.load(p.parent), _json),
    "imatrix": Parser("imatrix", "imatrix.gguf", _imatrix),
    "imatrix-dat": Parser("imatrix", "imatrix.dat", _imatrix),
    "merges": Parser("vocabulary", "merges.txt", lambda p: Tokenizer.load(p.parent)),
}  # fmt: skip


class ParserFolder:
    """A folder with a valid input for every parser, in which one file is replaced."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.valid_inputs = folder, ValidInputs(folder / "valid")
        self.seeds: dict[str, bytes] = {}

    def place(self, name: str) -> Path:
        """Return the path of the file to mutate; write the valid input around it first."""
        parser = PARSERS[name]
        work = self.folder / name
        if not work.exists():
            work.mkdir(parents=True)
            self._write(parser.kind, work)
            self.seeds[name] = (work / parser.file).read_bytes()
        return work / parser.file

    def _write(self, kind: str, work: Path) -> None:
        if kind == "pickle":
            state = {"a": None, "b": [1, 2.5, "x"], "c": (True, {"d": 1 << 70})}
            (work / "data.pkl").write_bytes(_state_pickle(self.valid_inputs) or pickle.dumps(state))
        elif kind == "tar":
            _small_tar(work / "source.tar.gz")
        elif kind == "training":
            source = self.valid_inputs.copy("jaxformer", work / "whole")
            training = next(p for p in source.rglob("*.json") if "model_layers" in p.read_text())
            shutil.copy(training, work / "config.json")
        elif kind in ("tokenizer", "vocabulary"):
            _small_tokenizer(work, whole=kind == "tokenizer")
        elif kind == "imatrix":
            (work / "imatrix.gguf").write_bytes(encoded(small_imatrix()))
            (work / "imatrix.dat").write_bytes(legacy(small_imatrix()))
        else:
            self.valid_inputs.copy(kind, work)

    def make(self, name: str, choose: Choose) -> bytes:
        """Return a changed input for a parser."""
        self.place(name)
        return PARSERS[name].make(self.seeds[name], choose)

    def check(self, name: str, raw: bytes) -> None:
        """Raise what the parser raises but for an InputError of one line; TimeoutError if late."""
        path = self.place(name)
        path.unlink(missing_ok=True)
        path.write_bytes(raw)
        with _timed():
            try:
                PARSERS[name].read(path)
            except (InputError, UsageError) as error:
                if "\n" in str(error):
                    raise AssertionError(f"not one line: {error!r}") from error
            except CgconvertError:
                raise


@contextlib.contextmanager
def _timed() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"more than {CPU_SECONDS} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _state_pickle(valid_inputs: ValidInputs) -> bytes:
    import zipfile

    with tempfile.TemporaryDirectory() as folder:
        source = valid_inputs.copy("torch", Path(folder))
        with zipfile.ZipFile(source / "pytorch_model.bin") as archive:
            name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            return archive.read(name)


def _small_tar(path: Path) -> None:
    import io
    import tarfile

    with tarfile.open(path, "w:gz") as archive:
        for name in ("codegen/config.json", "codegen/" + "long" * 40 + "/vocab.json"):
            info = tarfile.TarInfo(name)
            info.size = 600
            archive.addfile(info, io.BytesIO(b"x" * 600))


def _small_tokenizer(folder: Path, *, whole: bool) -> None:
    import tokenizers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*alphabet, "ab", "abc", "<|endoftext|>"])}
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    if whole:
        merges = ["a b", "ab c"]
        data = {"pre_tokenizer": level, "decoder": level,
                "model": {"type": "BPE", "merges": merges, "vocab": vocab}}  # fmt: skip
        (folder / "tokenizer.json").write_text(json.dumps(data))
    else:
        (folder / "vocab.json").write_text(json.dumps(vocab))
        (folder / "merges.txt").write_text("#version: 0.2\na b\nab c\n")
