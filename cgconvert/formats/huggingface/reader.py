"""Read a Hugging Face folder: its weight files, and the model that they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.formats.huggingface import config as configs
from cgconvert.formats.huggingface import safetensors_reader as safetensors
from cgconvert.formats.huggingface import torch_reader as torch_zip
from cgconvert.formats.huggingface.quantized import refuse_quantized
from cgconvert.formats.read_options import ReadOptions, read_tokenizer
from cgconvert.io.strict_json import read_json
from cgconvert.model.decoder import Checkpoint, Decoder, Geometry
from cgconvert.model.generation_config import GENERATION_CONFIG, read_generation_config
from cgconvert.model.tensor import LazyTensor, StoredTensor
from cgconvert.model.tensor_names import CODEGEN, GPTJ, PHI, TensorNames
from cgconvert.sources.resolve import Source

__all__ = [
    "MODEL_TYPES",
    "SUFFIXES",
    "ModelType",
    "decoder",
    "find_weights",
    "model_type",
    "read",
    "read_weights",
]


def read(source: Source, options: ReadOptions) -> Checkpoint:
    """Read a folder, or one weight file with the config.json beside it; the weights are lazy.

    Raises InputError if it is broken or not a CodeGen.
    """
    path = source.path
    folder = path if path.is_dir() else path.parent
    layout, files = find_weights(folder) if path.is_dir() else (path.suffix[1:], (path,))
    config_path = options.config or folder / "config.json"
    config = read_json(config_path)
    model = decoder(path, files, config, config_path, options.mp_num)
    tokenizer, tokenizer_files = read_tokenizer(folder, options, source.name, config)
    generation = read_generation_config(folder, config, config_path, tokenizer)
    generation_files = [path for path in (folder / GENERATION_CONFIG,) if path.is_file()]
    return Checkpoint(
        name=source.name,
        path=path,
        layout=model_type(config).layout or {"bin": "torch"}.get(layout, layout),
        config=config,
        decoder=model,
        tokenizer=tokenizer,
        files=(*files, config_path, *tokenizer_files, *generation_files),
        origin=source.origin,
        generation=generation,
    )


@dataclass(frozen=True)
class ModelType:
    """How the models of one `model_type` of transformers are stored.

    Attributes:
        names: The names of the tensors.
        geometry: Reads the geometry in a config.json. Its arguments are the configuration, the
            path for errors, and the number of groups in qkv_proj that the user gave, or None.
        layout: What a checkpoint's layout is called; empty for that of its weight files.
    """

    names: TensorNames
    geometry: Callable[[Mapping[str, Any], Path, int | None], Geometry]
    layout: str = ""


MODEL_TYPES: Mapping[str, ModelType] = {
    "codegen": ModelType(CODEGEN, configs.from_codegen),
    "moss": ModelType(CODEGEN, configs.from_codegen),
    "gptj": ModelType(GPTJ, configs.from_gptj, "gptj"),
    "phi": ModelType(PHI, configs.from_phi, "phi"),
}
"""The model types of the family: one decoder, with its tensors named and ordered differently."""


def model_type(config: Mapping[str, Any]) -> ModelType:
    """Return how the model of a config.json is stored.

    A type that is not in `MODEL_TYPES` is read as CodeGen, the model that other types were copied
    from. Then `mp_num` has to be given.
    """
    name = config.get("model_type")
    return MODEL_TYPES.get(name if isinstance(name, str) else "", MODEL_TYPES["codegen"])


def decoder(
    path: Path,
    files: tuple[Path, ...],
    config: Mapping[str, Any],
    config_path: Path,
    mp_num: int | None = None,
) -> Decoder:
    """Read the model in the weight files `files`, which `config` describes.

    `path` and `config_path` are named in errors. `mp_num` is the number of groups in qkv_proj; if
    it is None, it follows from the model type. Raises InputError if the files are broken or do not
    contain that model.
    """
    stored_as = model_type(config)
    tensors = read_weights(files)
    refuse_quantized(path, config, tensors)
    geometry = stored_as.geometry(config, config_path, mp_num)
    return stored_as.names.decoder(geometry, tensors, str(path))


# Layout, name of a single file, suffix and reader, in order of preference if a folder has both.
WEIGHT_FILES: tuple[tuple[str, str, str, Callable[[Path], Mapping[str, StoredTensor]]], ...] = (
    ("safetensors", "model.safetensors", ".safetensors", safetensors.tensors),
    ("torch", "pytorch_model.bin", ".bin", torch_zip.tensors),
)

SUFFIXES = tuple(suffix for _, _, suffix, _ in WEIGHT_FILES)

MAX_NAME = 60
"""The most characters of a shard's name: each has at most 4 bytes, and file systems allow 255."""


def find_weights(folder: Path) -> tuple[str, tuple[Path, ...]]:
    """Return the layout and the weight files of a folder: "torch", "safetensors", or "" if none."""
    for layout, name, _, _ in WEIGHT_FILES:
        if (folder / name).is_file():
            return layout, (folder / name,)
        if (folder / f"{name}.index.json").is_file():
            return layout, _shards(folder / f"{name}.index.json")
    return "", ()


def read_weights(files: tuple[Path, ...]) -> dict[str, LazyTensor]:
    """Read all tensors of these files, lazily.

    Raises InputError if a tensor is in two files, or not in the shard that the index names.
    """
    merged: dict[str, LazyTensor] = {}
    tensor_files: dict[str, Path] = {}
    for path in files:
        tensors = _reader(path)(path)
        duplicates = sorted(merged.keys() & tensors.keys())
        if duplicates:
            raise InputError(f"{path}: tensor {duplicates[0]} stands in another shard too")
        merged.update(tensors)
        tensor_files |= dict.fromkeys(tensors, path)
    _check_index(files, tensor_files)
    return merged


def _check_index(files: tuple[Path, ...], tensor_files: Mapping[str, Path]) -> None:
    """Check that the index names the right shard of each tensor, because other readers trust it.

    Shards that are not among `files` are not checked.
    """
    for _, single_file, suffix, _ in WEIGHT_FILES:
        index = files[0].with_name(f"{single_file}.index.json") if files else None
        if index is None or files[0].suffix != suffix or files[0].name == single_file:
            continue
        weight_map = read_json(index).get("weight_map") if index.is_file() else None
        for name, shard in weight_map.items() if isinstance(weight_map, dict) else ():
            is_read = any(shard == path.name for path in files)
            if is_read and (name not in tensor_files or tensor_files[name].name != shard):
                raise InputError(f"{index}: places tensor {name!r} in {shard}, which has none such")


def _reader(path: Path) -> Callable[[Path], Mapping[str, StoredTensor]]:
    """Return the reader of a weight file by its suffix. Raises InputError if there is none."""
    for _, _, suffix, reader in WEIGHT_FILES:
        if path.suffix == suffix:
            return reader
    raise InputError(f"{path}: not a weight file; expected .safetensors or .bin")


def _shards(index: Path) -> tuple[Path, ...]:
    """Return the shards that an index names.

    Raises InputError if a name is not that of a file in the same folder.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: has no weight_map")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(f"{index}: names a shard that is not text")
    names = sorted(set(weight_map.values()))
    for name in names:
        is_plain = name.isprintable() and len(name) <= MAX_NAME and not name.startswith(".")
        if not is_plain or "/" in name or "\\" in name:
            raise InputError(f"{index}: names a shard outside its folder: {name!r}")
        if not (index.parent / name).is_file():
            raise InputError(f"{index}: names {name}, which is not there")
    return tuple(index.parent / name for name in names)
