"""Read a Hugging Face folder, CodeGen or Phi: as a source, or as the weights transformers sees."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgconvert.formats.huggingface import config as configs
from cgconvert.formats.huggingface import weight_files
from cgconvert.formats.read_options import ReadOptions, read_tokenizer
from cgconvert.io.strict_json import read_json
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.model.decoder import Decoder
from cgconvert.model.tensor_names import CODEGEN, PHI
from cgconvert.sources.resolve import Source

__all__ = ["decoder", "is_phi", "read"]


def read(source: Source, options: ReadOptions) -> Checkpoint:
    """Read a folder of weights, or one file of them beside its config.json.

    Raises InputError where it is broken or not a CodeGen.
    """
    path = source.path
    folder = path if path.is_dir() else path.parent
    layout, files = weight_files.find(folder) if path.is_dir() else (path.suffix[1:], (path,))
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
    return names.decoder(geometry, weight_files.read(files), str(path))
