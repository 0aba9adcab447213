"""Read a Hugging Face folder: its weight files, and the CodeGen or Phi model that they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.formats.huggingface import config as configs
from cgconvert.formats.huggingface import safetensors_reader as safetensors
from cgconvert.formats.huggingface import torch_reader as torch_zip
from cgconvert.formats.read_options import ReadOptions, read_tokenizer
from cgconvert.io.strict_json import read_json
from cgconvert.model.decoder import Checkpoint, Decoder
from cgconvert.model.tensor import LazyTensor, StoredTensor
from cgconvert.model.tensor_names import CODEGEN, PHI
from cgconvert.sources.resolve import Source

__all__ = [
    "SUFFIXES",
    "decoder",
    "find_weights",
    "is_phi",
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
    tokenizer, tokenizer_files = read_tokenizer(folder, options)
    return Checkpoint(
        name=source.name,
        path=path,
        layout="phi" if is_phi(config) else {"bin": "torch"}.get(layout, layout),
        config=config,
        decoder=model,
        tokenizer=tokenizer,
        files=(*files, config_path, *tokenizer_files),
        origin=source.origin,
    )


def is_phi(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json is for PhiForCausalLM."""
    return config.get("model_type") == "phi"


def decoder(
    path: Path,
    files: tuple[Path, ...],
    config: Mapping[str, Any],
    config_path: Path,
    mp_num: int | None = None,
) -> Decoder:
    """Read the model in the weight files `files`: a Phi if `config` is for Phi, else a CodeGen.

    `path` and `config_path` are named in errors. `mp_num` is the number of groups in qkv_proj; if
    it is None, it follows from the model type. Raises InputError if the files are broken or do not
    contain that model.
    """
    if is_phi(config):
        names, geometry = PHI, configs.from_phi(config, config_path)
    else:
        names, geometry = CODEGEN, configs.from_codegen(config, config_path, mp_num)
    return names.decoder(geometry, read_weights(files), str(path))


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
