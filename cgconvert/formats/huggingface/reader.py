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
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.model.decoder import Decoder
from cgconvert.model.tensor import LazyTensor, Stored
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
    """Read a folder of weights, or one file of them beside its config.json.

    Raises InputError where it is broken or not a CodeGen.
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
    """Whether a config.json is PhiForCausalLM's."""
    return config.get("model_type") == "phi"


def decoder(
    path: Path,
    files: tuple[Path, ...],
    config: Mapping[str, Any],
    config_path: Path,
    mp_num: int | None = None,
) -> Decoder:
    """The model in the weight files `files`, a CodeGen or a Phi as `config` says.

    `path` and `config_path` are what errors name; `mp_num` is the number of groups in qkv_proj
    where the configuration does not tell it. Raises InputError where the files are broken or not
    that model's.
    """
    if is_phi(config):
        names, geometry = PHI, configs.from_phi(config, config_path)
    else:
        names, geometry = CODEGEN, configs.from_codegen(config, config_path, mp_num)
    return names.decoder(geometry, read_weights(files), str(path))


# In order of preference, where a repository has several.
KINDS: tuple[tuple[str, str, str, Callable[[Path], Mapping[str, Stored]]], ...] = (
    ("safetensors", "model.safetensors", ".safetensors", safetensors.tensors),
    ("torch", "pytorch_model.bin", ".bin", torch_zip.tensors),
)

SUFFIXES = tuple(suffix for _, _, suffix, _ in KINDS)

MAX_NAME = 60
"""The most characters of a file's name: 4 bytes each at most, and file systems take 255."""


def find_weights(folder: Path) -> tuple[str, tuple[Path, ...]]:
    """Which layout a folder's weights have ("" where there are none), and their files."""
    for layout, name, _, _ in KINDS:
        if (folder / name).is_file():
            return layout, (folder / name,)
        if (folder / f"{name}.index.json").is_file():
            return layout, _shards(folder / f"{name}.index.json")
    return "", ()


def read_weights(files: tuple[Path, ...]) -> dict[str, LazyTensor]:
    """All tensors of these files. Raises InputError where one stands in two of them."""
    merged: dict[str, LazyTensor] = {}
    placed: dict[str, Path] = {}
    for path in files:
        tensors = _reader(path)(path)
        twice = sorted(merged.keys() & tensors.keys())
        if twice:
            raise InputError(f"{path}: tensor {twice[0]} stands in another shard too")
        merged.update(tensors)
        placed |= dict.fromkeys(tensors, path)
    _check_places(files, placed)
    return merged


def _check_places(files: tuple[Path, ...], placed: Mapping[str, Path]) -> None:
    """Compare an index with its shards: other readers go by the index alone."""
    for _, whole, suffix, _ in KINDS:
        index = files[0].with_name(f"{whole}.index.json") if files else None
        if index is None or files[0].suffix != suffix or files[0].name == whole:
            continue
        table = read_json(index).get("weight_map") if index.is_file() else None
        for name, shard in table.items() if isinstance(table, dict) else ():
            here = any(shard == path.name for path in files)
            if here and (name not in placed or placed[name].name != shard):
                raise InputError(f"{index}: places tensor {name!r} in {shard}, which has none such")


def _reader(path: Path) -> Callable[[Path], Mapping[str, Stored]]:
    for _, _, suffix, reader in KINDS:
        if path.suffix == suffix:
            return reader
    raise InputError(f"{path}: not a weight file; expected .safetensors or .bin")


def _shards(index: Path) -> tuple[Path, ...]:
    """The shards an index names; each a plain file name beside it."""
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise InputError(f"{index}: has no weight_map")
    if not all(isinstance(name, str) for name in table.values()):
        raise InputError(f"{index}: names a shard that is not text")
    names = sorted(set(table.values()))
    for name in names:
        plain = name.isprintable() and len(name) <= MAX_NAME and not name.startswith(".")
        if not plain or "/" in name or "\\" in name:
            raise InputError(f"{index}: names a shard outside its folder: {name!r}")
        if not (index.parent / name).is_file():
            raise InputError(f"{index}: names {name}, which is not there")
    return tuple(index.parent / name for name in names)
