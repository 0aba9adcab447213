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
from cgconvert.formats.huggingface.foreign_tensors import explain_model, explain_tensors
from cgconvert.formats.huggingface.head import complete_head, fit_vocabulary, is_tied
from cgconvert.formats.huggingface.quantized import refuse_quantized
from cgconvert.formats.huggingface.state_dict import layout_tensors
from cgconvert.formats.read_options import ReadOptions, read_tokenizer
from cgconvert.io.reading import spend
from cgconvert.io.strict_json import read_json
from cgconvert.model.decoder import Checkpoint, Decoder, Geometry
from cgconvert.model.generation_config import generation_files, read_generation_config
from cgconvert.model.tensor import LazyTensor
from cgconvert.model.tensor_names import CODEGEN, GPTJ, PHI, TensorNames
from cgconvert.options import AUTO
from cgconvert.sources.resolve import Source
from cgconvert.sources.weight_files import (
    CHECKPOINT_FOLDER,
    INDEX_SUFFIX,
    STANDARD_NAMES,
    SUFFIXES,
    WeightFiles,
    choose_weights,
    explain_no_weights,
    is_rank_file,
    list_names,
    shard_names,
)

__all__ = [
    "MODEL_TYPES",
    "ModelType",
    "decoder",
    "find_weights",
    "model_type",
    "read",
    "read_weights",
]

FILE_PARTS = 64
"""What opening a weight file costs, in parts: as much as some tensors of it."""


def read(source: Source, options: ReadOptions) -> Checkpoint:
    """Read a folder, or one weight file with the config.json beside it; the weights are lazy.

    Raises InputError if it is broken or not a CodeGen.
    """
    path = source.path
    weights = _weights(path)
    base = path if path.is_dir() else path.parent
    files = _files(base, weights)
    folder = _settings_folder(base / weights.folder, files)
    config_path = options.config or folder / "config.json"
    config = _read_config(config_path, files)
    has_groups = "qkv" in model_type(config).names.layer
    mp_num = options.groups if has_groups or options.mp_num != AUTO else None
    model, notes = _source_decoder(path, files, config, config_path, mp_num)
    tokenizer, tokenizer_files = read_tokenizer(
        _tokenizer_folder(folder), options, source.name, config
    )
    generation = read_generation_config(folder, config, config_path, tokenizer)
    return Checkpoint(
        name=source.name,
        path=path,
        layout=model_type(config).layout or weights.layout,
        config=config,
        decoder=model,
        tokenizer=tokenizer,
        files=(
            *files,
            config_path,
            *tokenizer_files,
            *generation_files(folder, config, generation, tokenizer),
        ),
        origin=source.origin,
        generation=generation,
        notes=tuple(f"{path}: {note}" for note in (weights.note, *notes) if note),
    )


def _weights(path: Path) -> WeightFiles:
    """Find the weight files of a source: the file that the user gave, or those of a folder.

    Raises InputError if a folder has none.
    """
    if not path.is_dir():
        if is_rank_file(path.name):
            raise InputError(f"{path}: {explain_no_weights([path.name])}")
        layout = next((name for name, suffixes in SUFFIXES.items() if path.suffix in suffixes), "")
        return WeightFiles(layout, (path.name,))
    names = list_names(path)
    weights = choose_weights(names)
    if weights is None:
        raise InputError(f"{path}: {explain_no_weights(names) or 'has no weights'}")
    return weights


def _files(folder: Path, weights: WeightFiles) -> tuple[Path, ...]:
    """Return the weight files in `folder`. Raises InputError if an index names one not there."""
    if not weights.index:
        return tuple(folder / name for name in weights.files)
    return _shards(folder / weights.index)


def _settings_folder(folder: Path, files: tuple[Path, ...]) -> Path:
    """Return the folder with config.json: that of the weights, or the one above it.

    A training loop may save the configuration once, and weights in a folder for each step.
    """
    is_step = files[0].name.startswith("mp_rank_") and files[0].parent == folder
    return _with_file(folder, ("config.json",)) if is_step or _is_checkpoint(folder) else folder


def _tokenizer_folder(folder: Path) -> Path:
    """Return the folder with the tokenizer of the checkpoint in `folder`.

    The Trainer's checkpoints have none if it was not given the tokenizer; then the run may have it.
    """
    names = ("tokenizer.json", "vocab.json")
    return _with_file(folder, names) if _is_checkpoint(folder) else folder


def _is_checkpoint(folder: Path) -> bool:
    """Return whether a folder is that of one step of a training run."""
    return CHECKPOINT_FOLDER.fullmatch(folder.resolve().name) is not None


def _with_file(folder: Path, names: tuple[str, ...]) -> Path:
    """Return the folder above if it has one of these files and `folder` has none."""
    above = folder.resolve().parent
    is_above = any((above / name).is_file() for name in names)
    return above if is_above and not any((folder / name).exists() for name in names) else folder


def _read_config(path: Path, files: tuple[Path, ...]) -> dict[str, Any]:
    """Read a config.json.

    Raises InputError; if it is not there, the error says what to do, or which other model the
    weights are of.
    """
    try:
        return read_json(path)
    except InputError as error:
        if path.exists():
            raise
        if explanation := explain_model(read_weights(files), {}):
            raise InputError(f"{files[0]}: {explanation}") from None
        raise InputError(f"{error}; give the model's configuration with `config`") from error


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


def _source_decoder(
    path: Path,
    files: tuple[Path, ...],
    config: Mapping[str, Any],
    config_path: Path,
    mp_num: int | None,
) -> tuple[Decoder, list[str]]:
    """Read the model in a source's weight files, as training loops save them; see `decoder`.

    Returns the model, and notes on what is not as transformers saves it. Raises InputError as
    `decoder` does, and then says what the tensors are if they are those of another model.
    """
    stored_as = model_type(config)
    stored = read_weights(files)
    if explanation := explain_model(stored, config):
        raise InputError(f"{path}: {explanation}")
    refuse_quantized(path, config, stored)
    tensors, notes = layout_tensors(_with_shared(files, stored), stored_as.names, str(path))
    if explanation := explain_tensors(stored, tensors, stored_as.names, config):
        raise InputError(f"{path}: {explanation}")
    geometry = stored_as.geometry(config, config_path, mp_num)
    tensors, head_notes = complete_head(tensors, stored_as.names, is_tied(config, config_path))
    geometry, size_notes = fit_vocabulary(tensors, stored_as.names, geometry, str(path))
    model = stored_as.names.decoder(geometry, tensors, str(path))
    return model, notes + head_notes + size_notes


def _with_shared(
    files: tuple[Path, ...], tensors: Mapping[str, LazyTensor]
) -> Mapping[str, LazyTensor]:
    """Add the tensors that safetensors files store under another name only."""
    shared = {
        name: tensors[stored]
        for path in files
        if path.suffix in SUFFIXES["safetensors"]
        for name, stored in safetensors.shared_names(path).items()
    }
    return {**shared, **tensors}


_READERS: Mapping[str, Callable[[Path], Mapping[str, LazyTensor]]] = {
    "safetensors": safetensors.tensors,
    "torch": torch_zip.tensors,
}
"""Reader of one weight file, by layout."""


def find_weights(folder: Path) -> tuple[str, tuple[Path, ...]]:
    """Return the layout and the weight files of an artefact: those that transformers loads.

    They are "torch" or "safetensors", and "" if there are none.
    """
    for layout, name in STANDARD_NAMES.items():
        if (folder / name).is_file():
            return layout, (folder / name,)
        if (folder / f"{name}{INDEX_SUFFIX}").is_file():
            return layout, _shards(folder / f"{name}{INDEX_SUFFIX}")
    return "", ()


def read_weights(files: tuple[Path, ...]) -> dict[str, LazyTensor]:
    """Read all tensors of these files, lazily.

    Raises InputError if a tensor is in two files, or not in the shard that the index names.
    """
    merged: dict[str, LazyTensor] = {}
    tensor_files: dict[str, Path] = {}
    for path in files:
        spend(path, "parts", FILE_PARTS)
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
    for single_file in STANDARD_NAMES.values():
        index = files[0].with_name(f"{single_file}{INDEX_SUFFIX}") if files else None
        if index is None or files[0].name == single_file:
            continue
        if files[0].suffix != Path(single_file).suffix:
            continue
        weight_map = read_json(index).get("weight_map") if index.is_file() else None
        names = {path.name for path in files}
        for name, shard in weight_map.items() if isinstance(weight_map, dict) else ():
            is_read = isinstance(shard, str) and shard in names
            if is_read and (name not in tensor_files or tensor_files[name].name != shard):
                raise InputError(
                    f"{index}: says that tensor {name!r} is in {shard}, which does not contain it; "
                    "fetch index and shards again"
                )


def _reader(path: Path) -> Callable[[Path], Mapping[str, LazyTensor]]:
    """Return the reader of a weight file by its suffix. Raises InputError if there is none."""
    for layout, suffixes in SUFFIXES.items():
        if path.suffix in suffixes:
            return _READERS[layout]
    expected = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
    raise InputError(f"{path}: not a weight file; expected {expected}")


def _shards(index: Path) -> tuple[Path, ...]:
    """Return the shards that an index names. Raises InputError if one is not there."""
    paths = tuple(index.parent / name for name in shard_names(index))
    for path in paths:
        if not path.is_file():
            raise InputError(f"{index}: names {path.name}, which is not there; fetch it too")
    return paths
