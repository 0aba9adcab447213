"""Say what a folder or file without a model is: a tokenizer, a dataset, a diffusers pipeline.

Only file names and small JSON files are looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from cgconvert.errors import InputError, first_few
from cgconvert.io.strict_json import read_json
from cgconvert.model.architectures import explain_architecture, explain_config
from cgconvert.model.tokenizer_files import TOKENIZER_FILES
from cgconvert.sources.weight_files import explain_no_weights, is_weight_file, list_names

__all__ = ["explain_no_model", "explain_pipeline"]

PIPELINE = "model_index.json"
"""The file that a folder of diffusers has at its top."""

DATASET_NAMES = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json")
DATASET_SUFFIXES = (".parquet", ".arrow", ".jsonl", ".csv", ".tsv")
OTHER_FILES: Mapping[str, str] = {
    ".h5": "weights of Keras or TensorFlow",
    ".msgpack": "weights of Flax",
    ".tflite": "a model of TensorFlow Lite",
    ".mlmodel": "a model of Core ML",
    ".zip": "a zip archive; unpack it and give the folder",
    ".7z": "a 7z archive; unpack it and give the folder",
    ".json": "a JSON file; give the folder of the model",
    ".txt": "a text; give the folder of the model",
    ".parquet": "a dataset",
    ".jsonl": "a dataset",
    ".npz": "an archive of arrays; give the folder of the Jaxformer step",
}
"""What files with these suffixes are, for an error."""


def explain_pipeline(names: Collection[str], class_name: str = "") -> str:
    """Say that files are those of a diffusers pipeline; "" if there is no model_index.json."""
    if PIPELINE not in names:
        return ""
    evidence = f"{PIPELINE}, {class_name}" if class_name else PIPELINE
    return explain_architecture("a diffusers pipeline, which generates no text", evidence)


def explain_no_model(path: Path) -> str:
    """Say why a file or folder is not the source of a model, and what to do.

    Returns a phrase that continues "PATH: ", or "" if nothing there is known.
    """
    if not path.is_dir():
        kind = OTHER_FILES.get(path.suffix.lower(), "")
        return f"is {kind}" if kind else ""
    names = list_names(path)
    if not names:
        return "is an empty folder"
    pipeline = explain_pipeline(names, str(_json(path / PIPELINE).get("_class_name", ""))[:60])
    return (
        pipeline
        or explain_no_weights(names)
        or _explain_configuration(path, names)
        or _explain_parts(path, names)
        or _explain_subfolders(names)
    )


def _explain_configuration(path: Path, names: Collection[str]) -> str:
    """Explain a folder with a config.json, but without weights."""
    if "config.json" not in names:
        return ""
    config = _json(path / "config.json")
    if explanation := explain_config(config):
        return explanation
    return (
        "has a config.json and no weights; fetch model.safetensors or pytorch_model.bin too, with "
        "all their shards"
    )


def _explain_parts(path: Path, names: Collection[str]) -> str:
    """Explain a folder that has a tokenizer, a graph or a dataset only."""
    graph = next((name for name in sorted(names) if name.endswith(".onnx")), "")
    if graph:
        return f"has a graph ({graph}) and no config.json beside it, as cgconvert's outputs have"
    if any(name in names for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        return "has a tokenizer and no weights; give it with `tokenizer`, and a model as the source"
    own = set(map(PurePosixPath, names))
    data = sorted(str(file) for file in own if file.suffix in DATASET_SUFFIXES)
    marks = [name for name in DATASET_NAMES if name in names]
    if data or marks:
        return f"is a dataset ({(marks or data)[0]}) and no model"
    if all(str(file) in TOKENIZER_FILES for file in own):
        return f"has {first_few(sorted(map(str, own)), 3, separator=', ')} and no weights"
    return ""


def _explain_subfolders(names: Collection[str]) -> str:
    """Explain a folder whose subfolders have weights."""
    folders = sorted({name.rpartition("/")[0] for name in names if is_weight_file(Path(name))})
    folders = [folder for folder in folders if folder]
    if not folders:
        return ""
    return f"has models in subfolders; give one: {first_few(folders, 5, separator=', ')}"


def _json(path: Path) -> Mapping[str, Any]:
    """Read a small JSON file; empty if it is not there or broken."""
    try:
        return read_json(path) if path.is_file() else {}
    except InputError:
        return {}
