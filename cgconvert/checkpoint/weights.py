"""The weight files of a Hugging Face folder: one file or shards, safetensors or torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from cgconvert.checkpoint import safetensors, torch_zip
from cgconvert.checkpoint.config import read_json
from cgconvert.errors import InputError
from cgconvert.tensor import LazyTensor, Stored

__all__ = ["find", "read"]

# In order of preference, where a repository has several.
KINDS: tuple[tuple[str, str, str, Callable[[Path], Mapping[str, Stored]]], ...] = (
    ("safetensors", "model.safetensors", ".safetensors", safetensors.tensors),
    ("torch", "pytorch_model.bin", ".bin", torch_zip.tensors),
)


def find(folder: Path) -> tuple[str, tuple[Path, ...]]:
    """Which layout a folder's weights have ("" where there are none), and their files."""
    for layout, name, _, _ in KINDS:
        if (folder / name).is_file():
            return layout, (folder / name,)
        if (folder / f"{name}.index.json").is_file():
            return layout, _shards(folder / f"{name}.index.json")
    return "", ()


def read(files: tuple[Path, ...]) -> dict[str, LazyTensor]:
    """All tensors of these files. Raises InputError where one stands in two of them."""
    merged: dict[str, LazyTensor] = {}
    for path in files:
        tensors = _reader(path)(path)
        twice = sorted(merged.keys() & tensors.keys())
        if twice:
            raise InputError(f"{path}: tensor {twice[0]} stands in another shard too")
        merged.update(tensors)
    return merged


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
    names = sorted({str(name) for name in table.values()})
    for name in names:
        if "/" in name or "\\" in name or name.startswith("."):
            raise InputError(f"{index}: names a shard outside its folder: {name!r}")
        if not (index.parent / name).is_file():
            raise InputError(f"{index}: names {name}, which is not there")
    return tuple(index.parent / name for name in names)
