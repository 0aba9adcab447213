"""Admit a Hugging Face folder to transformers: a complete model, and no code."""

from __future__ import annotations

from pathlib import Path

from cgconvert.errors import InputError
from cgconvert.formats.huggingface import config as configs
from cgconvert.formats.huggingface import reader
from cgconvert.formats.huggingface.admitted_entries import admit_configuration, admit_tokenizer
from cgconvert.io.admitted import AdmittedFiles, admitting
from cgconvert.io.strict_json import read_json
from cgconvert.model.tensor import Zeros
from cgconvert.model.tensor_names import CODEGEN, GPTJ, PHI
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.model.tokenizer_files import TOKENIZER_FILES
from cgconvert.sources.weight_files import INDEX_SUFFIX, STANDARD_NAMES

__all__ = ["admit_huggingface", "check_folder"]

WEIGHTS = STANDARD_NAMES["safetensors"]


def admit_huggingface(folder: Path) -> AdmittedFiles:
    """Admit a folder to transformers: a complete model in safetensors, and no code."""
    # transformers would take any other folder for a name on the Hub.
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: not a Hugging Face folder, it has no config.json")
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{folder}: refused: it has an adapter_config.json")
    layout, weights = reader.find_weights(folder)
    if layout != "safetensors":
        raise InputError(f"{folder}: has no safetensors")
    with admitting(folder, folder) as files:
        files.copy_present(("config.json", "generation_config.json", *TOKENIZER_FILES))
        files.copy_present([] if weights == (folder / WEIGHTS,) else [f"{WEIGHTS}{INDEX_SUFFIX}"])
        for path in weights:
            files.link(path.name)
        check_folder(files.folder)
        admit_configuration(files)
        admit_tokenizer(files, with_template=False)
        _admit_index(files)
    return files


def _admit_index(files: AdmittedFiles) -> None:
    """Let transformers have an index with nothing but the names of tensors and shards."""
    path = files.folder / f"{WEIGHTS}{INDEX_SUFFIX}"
    if path.is_file():
        files.write_json(path.name, {"metadata": {}, "weight_map": read_json(path)["weight_map"]})


def check_folder(folder: Path) -> None:
    """Check that a folder has safetensors of the shapes in its config.json, and a tokenizer.

    Raises InputError if it does not.
    """
    config_path = folder / "config.json"
    config = read_json(config_path)
    model_type = config.get("model_type")
    if model_type not in ("codegen", "gptj", "phi"):
        raise InputError(f"{config_path}: model_type is {model_type!r}, not codegen, gptj or phi")
    _, files = reader.find_weights(folder)

    def integer(*keys: str, default: int | None = None) -> int:
        """Read a positive integer of this config.json."""
        return configs.integer(config, config_path, *keys, default=default)

    width = integer("n_embd", "hidden_size")
    geometry = configs.geometry(
        config_path,
        n_layer=integer("n_layer", "num_hidden_layers"),
        n_embd=width,
        n_head=integer("n_head", "num_attention_heads"),
        rotary_dim=2,  # any value: only shapes are checked, and none depends on it
        n_positions=integer("n_positions", "n_ctx", "max_position_embeddings"),
        vocab_size=integer("vocab_size"),
        n_inner=integer("n_inner", "intermediate_size", default=4 * width),
        mp_num=1,
    )
    names = {"codegen": CODEGEN, "gptj": GPTJ, "phi": PHI}[model_type]
    shapes = {name: Zeros(t.shape, t.dtype) for name, t in reader.read_weights(files).items()}
    names.decoder(geometry, shapes, str(folder))
    Tokenizer.load(folder)
