"""Runs every parser on mutated input: it must return or raise an InputError, in time.

    python -m tests.faults.fuzz --seconds 600

runs all parsers in turn with random mutations. Input that breaks one is shortened and kept in
tests/faults/corpus/. `test_fuzz.py` drives the same mutations with hypothesis and runs the corpus.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import pickle
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import torch

from cgconvert.calibrate.imatrix import collect
from cgconvert.cli import recipe
from cgconvert.errors import CgconvertError, InputError, UsageError
from cgconvert.formats.gguf.checks import admit_gguf
from cgconvert.formats.gguf.header import read_header
from cgconvert.formats.gguf.imatrix import Imatrix, encoded, read_imatrix
from cgconvert.formats.huggingface import config, reader
from cgconvert.formats.huggingface import safetensors_reader as safetensors
from cgconvert.formats.huggingface import torch_reader as torch_zip
from cgconvert.formats.huggingface.state_dict import find_state_dict
from cgconvert.formats.huggingface.torch_globals import RefusedError
from cgconvert.formats.huggingface.torch_pickle import parse
from cgconvert.formats.jaxformer import reader as jaxformer
from cgconvert.formats.onnx import reader as onnx
from cgconvert.formats.onnx.checks import admit_genai, admit_onnx
from cgconvert.io.progress import SilentProgress
from cgconvert.io.strict_json import read_json
from cgconvert.model.decoder import Decoder
from cgconvert.model.tensor import InMemoryTensor
from cgconvert.model.tensor_names import CODEGEN
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.sources import tarball
from cgconvert.write import manifest
from cgconvert.write.hashing import checked_sha256
from tests.faults.valid_inputs import GEOMETRY, STATE, ValidInputs
from tests.support.imatrices import legacy

__all__ = ["CORPUS", "TARGETS", "FuzzFolder", "Target", "mutated", "small_decoder", "small_imatrix"]

CORPUS = Path(__file__).parent / "corpus"
CPU_SECONDS = 5.0
"""Limit of CPU time for one input. Elapsed time would depend on how busy the machine is."""

Choose = Callable[[int, int], int]
"""Returns a number between two bounds, from a random generator or from hypothesis."""

NUMBERS = (0, 1, 2, 7, 8, 9, 127, 128, 255, 256, 65535, 65536, (1 << 31) - 1, 1 << 31,
           (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
TEXTS = (b"-1", b"1e999", b"NaN", b"null", b"[]", b"{}", b'""', b"true", b"9" * 40, b"..", b"/",
         b"\\ud800", b"\0", b"\xff", b'"', b"[" * 2000, b"{" * 2000, b"\x1b[2J")  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A parser `read`, the kind of valid input it gets, and the file in it that is mutated."""

    kind: str
    file: str
    read: Callable[[Path], object]


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


@functools.cache
def small_decoder() -> Decoder:
    """The model that all valid inputs hold."""
    tensors = {name: InMemoryTensor(tensor) for name, tensor in STATE.items()}
    return CODEGEN.decoder(GEOMETRY, tensors, "small")


@functools.cache
def small_imatrix() -> Imatrix:
    return collect(small_decoder(), torch.arange(64).view(2, 32), "a text", SilentProgress())


def _imatrix(path: Path) -> None:
    read_imatrix(path, small_decoder())


TARGETS: Mapping[str, Target] = {
    "pickle": Target("pickle", "data.pkl", _pickle),
    "zip": Target("torch", "source/pytorch_model.bin", torch_zip.tensors),
    "zip-crc": Target("torch", "source/pytorch_model.bin", checked_sha256),
    "npz": Target("jaxformer", "source/1000/model/0.npz", jaxformer.leaves),
    "tar": Target("tar", "source.tar.gz", tarball.unpack),
    "safetensors": Target("safetensors", "source/model.safetensors", safetensors.tensors),
    "index": Target("safetensors-sharded", "source/model.safetensors.index.json", _folder),
    "gguf": Target("gguf", "source.gguf", read_header),
    "gguf-llama": Target("gguf", "source.gguf", admit_gguf),
    "onnx": Target("onnx", "source/onnx/model.onnx", onnx.stored_tensors),
    "onnx-run": Target("onnx-int4", "source/onnx/model_q4.onnx", admit_onnx),
    "genai": Target("onnx", "source/genai_config.json", lambda p: admit_genai(p.parent)),
    "config": Target("safetensors", "source/config.json",
                     lambda p: config.from_codegen(read_json(p), p, None)),
    "gptj": Target("gptj", "source/config.json", lambda p: config.from_gptj(read_json(p), p)),
    "phi": Target("phi", "source/config.json", lambda p: config.from_phi(read_json(p), p)),
    "training": Target("training", "config.json", _training),
    "manifest": Target("hf", "source/cgconvert.json", _manifest),
    "recipe": Target("recipe", "recipe.yaml", recipe.load),
    "tokenizer": Target("tokenizer", "tokenizer.json", lambda p: Tokenizer.load(p.parent)),
    "imatrix": Target("imatrix", "imatrix.gguf", _imatrix),
    "imatrix-dat": Target("imatrix", "imatrix.dat", _imatrix),
    "merges": Target("vocabulary", "merges.txt", lambda p: Tokenizer.load(p.parent)),
}  # fmt: skip


def mutated(raw: bytes, choose: Choose, head: int = 1 << 16) -> bytes:
    """Change up to four places, mostly near the start or the end, where headers are."""
    data = bytearray(raw)
    for _ in range(choose(1, 4)):
        zone = min(len(data), (64, 1024, head)[choose(0, 2)])
        place = choose(0, max(0, zone - 1))
        if choose(0, 3) == 0:
            place = max(0, len(data) - 1 - place)
        kind = choose(0, 8)
        if kind == 0:
            data[place : place + 1] = bytes([choose(0, 255)])
        elif kind == 1:
            data[place : place + 1] = bytes([data[place] ^ 1 << choose(0, 7)]) if data else b""
        elif kind in (2, 3):
            number, width = NUMBERS[choose(0, len(NUMBERS) - 1)], (1, 2, 4, 8)[choose(0, 3)]
            data[place : place + width] = (number % (1 << 8 * width)).to_bytes(width, "little")
        elif kind == 4:
            data[place:place] = TEXTS[choose(0, len(TEXTS) - 1)]
        elif kind == 5:
            del data[place : place + choose(1, 40)]
        elif kind == 6:
            copied_from = choose(0, max(0, zone - 1))
            data[place:place] = data[copied_from : copied_from + choose(1, 200)]
        elif kind == 7:
            del data[place:]
        else:
            digits = [i for i in range(place, min(place + 400, len(data))) if 48 <= data[i] < 58]
            if digits:
                data[digits[0] : digits[0] + 1] = str(NUMBERS[choose(0, len(NUMBERS) - 1)]).encode()
    return bytes(data)


class FuzzFolder:
    """A folder with a valid input for every target, in which one file is replaced."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.valid_inputs = folder, ValidInputs(folder / "valid")
        self.seeds: dict[str, bytes] = {}

    def place(self, name: str) -> Path:
        """Return the path of the file to mutate; write the valid input around it first."""
        target = TARGETS[name]
        work = self.folder / name
        if not work.exists():
            work.mkdir(parents=True)
            self._write(target.kind, work)
            self.seeds[name] = (work / target.file).read_bytes()
        return work / target.file

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

    def check(self, name: str, raw: bytes) -> None:
        """Raise what the parser raises but for an InputError of one line; TimeoutError if late."""
        path = self.place(name)
        path.unlink(missing_ok=True)
        path.write_bytes(raw)
        with _timed():
            try:
                TARGETS[name].read(path)
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


def shortened(fuzz_folder: FuzzFolder, name: str, raw: bytes, kind: type[BaseException]) -> bytes:
    """Remove bytes while the same error still occurs, for a minute at most."""
    until, step = time.monotonic() + 60, len(raw) // 2
    while step and time.monotonic() < until:
        place = 0
        while place < len(raw) and time.monotonic() < until:
            shorter = raw[:place] + raw[place + step :]
            try:
                fuzz_folder.check(name, shorter)
            except BaseException as error:
                if isinstance(error, kind):
                    raw = shorter
                    continue
            place += step
        step //= 2
    return raw


@click.command()
@click.option("--seconds", default=600.0, show_default=True, help="For each target.")
@click.option("--target", type=click.Choice(list(TARGETS)), multiple=True, help="Only these.")
@click.option("--seed", default=0, show_default=True)
def main(seconds: float, target: tuple[str, ...], seed: int) -> None:
    """Exit with 1 if a parser broke; the inputs are then in tests/faults/corpus."""
    broken = 0
    with tempfile.TemporaryDirectory() as folder:
        import os

        os.environ["CGCONVERT_CACHE"] = f"{folder}/cache"
        fuzz_folder = FuzzFolder(Path(folder))
        for name in target or TARGETS:
            fuzz_folder.place(name)
            chance, until, count = random.Random(f"{seed} {name}"), time.monotonic() + seconds, 0
            kinds: set[str] = set()
            while time.monotonic() < until:
                raw = mutated(fuzz_folder.seeds[name], chance.randint)
                count += 1
                try:
                    fuzz_folder.check(name, raw)
                except Exception as error:
                    label = f"{type(error).__name__}: {str(error)[:60]}"
                    if label not in kinds:
                        kinds.add(label)
                        raw = shortened(fuzz_folder, name, raw, type(error))
                        kept = CORPUS / name / hashlib.sha256(raw).hexdigest()[:12]
                        kept.parent.mkdir(parents=True, exist_ok=True)
                        kept.write_bytes(raw)
                        click.echo(f"{name}: {label}: {kept}")
            broken += len(kinds)
            click.echo(f"{name}: {count} inputs, {len(kinds)} kinds of failure")
    raise SystemExit(bool(broken))


if __name__ == "__main__":
    main()
