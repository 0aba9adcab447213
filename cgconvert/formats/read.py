"""Read any source: the one entry that commands use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError, UsageError
from cgconvert.formats import jaxformer
from cgconvert.formats.huggingface import config_reader as configs
from cgconvert.formats.huggingface import weight_files as weights
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.model.decoder import Decoder
from cgconvert.model.tensor_names import CODEGEN, PHI
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.model.tokenizer_files import TOKENIZER_FILES
from cgconvert.sources import hub
from cgconvert.sources.resolve import Source, find
from cgconvert.write.manifest import find_manifest

__all__ = ["ReadOptions", "huggingface_decoder", "layout_of", "read"]


@dataclass(frozen=True)
class ReadOptions:
    """What a user can say about a source that the source itself may not.

    `tokenizer` and `config` replace the source's own, `mp_num` the number of groups in qkv_proj,
    `step` chooses among a Jaxformer run's, `revision` is the Hub's.
    """

    tokenizer: Path | None = None
    config: Path | None = None
    mp_num: int | None = None
    step: int | None = None
    revision: str | None = None

    def given(self) -> dict[str, str | int]:
        """What was said, as a manifest keeps it."""
        said = {key: getattr(self, key) for key in ("tokenizer", "config", "mp_num")}
        return {
            key: str(value) if isinstance(value, Path) else value
            for key, value in said.items()
            if value is not None
        }

    @classmethod
    def from_origin(cls, origin: Mapping[str, Any]) -> ReadOptions:
        """The options a manifest kept. Raises InputError where one cannot be what was said."""
        kinds = {"tokenizer": str, "config": str, "mp_num": int, "step": int, "revision": str}
        said = {key: origin[key] for key in kinds if origin.get(key) is not None}
        for key, value in said.items():
            if not isinstance(value, kinds[key]) or isinstance(value, bool):
                raise InputError(f"the manifest's {key} is {value!r}, which it cannot be")
        for key in said.keys() & {"tokenizer", "config"}:
            said[key] = Path(said[key])
        return cls(**said)


def read(given: str, options: ReadOptions | None = None) -> Checkpoint:
    """A checkpoint from whatever names one; only headers are read.

    Raises InputError where it is missing, broken or not a CodeGen.
    """
    options = options or ReadOptions()
    source = find(given, options.revision)
    layout = layout_of(source.path)
    if options.step is not None and layout != "jaxformer":
        raise UsageError(f"--step is for Jaxformer checkpoints; {given} is {layout}")
    checkpoint = _READERS[layout](source, options)
    manifest = find_manifest(checkpoint.path)
    checkpoint = replace(
        checkpoint,
        name=manifest.name if manifest else checkpoint.name,
        origin={"given": given, **checkpoint.origin, **options.given()},
    )
    if checkpoint.tokenizer.size > checkpoint.geometry.vocab_size:
        raise InputError(
            f"{source.path}: the tokenizer has {checkpoint.tokenizer.size} entries, the embedding "
            f"only {checkpoint.geometry.vocab_size} rows; give the right one with --tokenizer"
        )
    return checkpoint


def layout_of(path: Path) -> str:
    """How a checkpoint is stored. Raises InputError where nothing known is there."""
    if path.is_file():
        if path.suffix == ".gguf":
            return "gguf"
        if path.suffix in (".bin", ".safetensors"):
            return "huggingface"
        if path.suffix == ".onnx":
            return "onnx"
    elif path.is_dir():
        if any((path / "onnx").glob("*.onnx")):
            return "onnx"
        if weights.find(path)[0]:
            return "huggingface"
        if jaxformer.is_step(path) or any(jaxformer.is_step(c) for c in path.iterdir()):
            return "jaxformer"
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1:
            return "gguf"
    raise InputError(
        f"{path}: no checkpoint found; expected pytorch_model.bin, model.safetensors (or their "
        "index), a Jaxformer step, a .tar.gz, or one of cgconvert's own outputs"
    )


def _huggingface(source: Source, options: ReadOptions) -> Checkpoint:
    path = source.path
    folder = path if path.is_dir() else path.parent
    layout, files = weights.find(folder) if path.is_dir() else (path.suffix[1:], (path,))
    where = options.config or folder / "config.json"
    config = configs.read_json(where)
    decoder = huggingface_decoder(path, files, config, where, options.mp_num)
    tokenizer, used = _tokenizer(folder, options)
    return Checkpoint(
        name=source.name,
        path=path,
        layout="phi" if _is_phi(config) else {"bin": "torch"}.get(layout, layout),
        config=config,
        decoder=decoder,
        tokenizer=tokenizer,
        files=(*files, where, *used),
        origin=source.origin,
    )


def _is_phi(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "phi"


def huggingface_decoder(
    path: Path,
    files: tuple[Path, ...],
    config: Mapping[str, Any],
    where: Path,
    mp_num: int | None = None,
) -> Decoder:
    """The model in `files`, a CodeGen or a Phi by its configuration, which is from `where`.

    Raises InputError where the files are broken or not that model's.
    """
    if _is_phi(config):
        names, geometry = PHI, configs.from_phi(config, where)
    else:
        names, geometry = CODEGEN, configs.from_codegen(config, where, mp_num)
    return names.decoder(geometry, weights.read(files), str(path))


def _jaxformer(source: Source, options: ReadOptions) -> Checkpoint:
    step = jaxformer.choose_step(source.path, options.step)
    where = options.config or _training_config(source.path, step)
    config = configs.read_json(where)
    geometry = configs.from_jaxformer(config, where, options.mp_num)
    tensors = jaxformer.tensors(step, geometry)
    tokenizer, used = _tokenizer(source.path, options)
    return Checkpoint(
        name=source.name if not source.name.isdigit() else source.path.resolve().parent.name,
        path=step,
        layout="jaxformer",
        config=config,
        decoder=CODEGEN.decoder(geometry, tensors, str(step)),
        tokenizer=tokenizer,
        files=(step / "model" / "0.npz", where, *used),
        origin={**source.origin, "step": jaxformer.step_number(step)},
    )


def _training_config(folder: Path, step: Path) -> Path:
    """The training configuration: a JSON file with model_layers, in the folder or the step's."""
    places = dict.fromkeys((folder, step, step.parent))
    found = [
        path
        for place in places
        for path in sorted(place.glob("*.json"))
        if configs.is_jaxformer(configs.read_json(path))
    ]
    if not found:
        raise InputError(
            f"{folder}: no Jaxformer training configuration (a .json with model_layers) in it; "
            "give it with --config"
        )
    return found[0]


def _gguf(source: Source, options: ReadOptions) -> Checkpoint:
    from cgconvert.formats.gguf import reader as gguf

    path = source.path if source.path.is_file() else next(source.path.glob("*.gguf"))
    return _with_options(gguf.read(path, source.name), options)


def _onnx(source: Source, options: ReadOptions) -> Checkpoint:
    from cgconvert.formats.onnx import reader as onnx

    return _with_options(onnx.read(source.path, source.name), options)


def _with_options(checkpoint: Checkpoint, options: ReadOptions) -> Checkpoint:
    if options.tokenizer is None:
        return checkpoint
    return replace(checkpoint, tokenizer=Tokenizer.load(options.tokenizer))


def _tokenizer(folder: Path, options: ReadOptions) -> tuple[Tokenizer, tuple[Path, ...]]:
    """The tokenizer given, else the source's, else GPT-2's; and the files it came from."""
    place = options.tokenizer or folder
    if options.tokenizer is None and not any(
        (place / name).is_file() for name in ("tokenizer.json", "vocab.json")
    ):
        place = hub.tokenizer()
    here = place if place.is_dir() else place.parent
    used = tuple(here / name for name in TOKENIZER_FILES if (here / name).is_file())
    return Tokenizer.load(place), used


_READERS: Mapping[str, Callable[[Source, ReadOptions], Checkpoint]] = {
    "huggingface": _huggingface,
    "jaxformer": _jaxformer,
    "gguf": _gguf,
    "onnx": _onnx,
}
