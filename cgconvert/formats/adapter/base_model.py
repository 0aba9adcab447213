"""Find the model that an adapter was trained on, if the adapter itself is the source."""

from __future__ import annotations

from pathlib import Path

from cgconvert.errors import InputError
from cgconvert.formats.adapter.config import CONFIG_NAME, read_config
from cgconvert.formats.adapter.merge import WEIGHT_NAMES, adapter_weights
from cgconvert.formats.huggingface.foreign_tensors import explain_model
from cgconvert.formats.huggingface.reader import read_weights
from cgconvert.io.file_names import can_exist
from cgconvert.sources.resolve import Source, resolve

__all__ = ["find_base", "has_adapter"]


def has_adapter(folder: Path) -> bool:
    """Whether a folder has an adapter's configuration or weights; only file names are looked at."""
    return any((folder / name).is_file() for name in (CONFIG_NAME, *WEIGHT_NAMES))


def find_base(folder: Path) -> tuple[str, Source]:
    """Find the model that the adapter in a folder names as its base.

    A relative path counts from the current folder, as in peft, or else from the adapter's.

    Returns:
        The base's path or name, and the base.

    Raises:
        InputError: The adapter is broken or names no base, or the base is not there.
    """
    if not (folder / CONFIG_NAME).is_file():
        raise InputError(
            f"{folder}: has the weights of an adapter, but no {CONFIG_NAME}; fetch it too"
        )
    config = read_config(folder)
    weights = adapter_weights(folder)
    if explanation := explain_model(read_weights((weights,)), {}):  # before a base is downloaded
        raise InputError(f"{weights}: is an adapter whose model {explanation}")
    advice = f"give the base as the source and this folder with `adapter={folder}`"
    if not config.base:
        raise InputError(f"{config.path}: does not name its base model; {advice}")
    beside = folder / config.base
    if not can_exist(beside):
        raise InputError(
            f"{config.path}: its base model has a name that no file can have; {advice}"
        )
    is_beside = not Path(config.base).exists() and beside.exists()
    location = str(beside.resolve()) if is_beside else config.base
    try:
        # A revision belongs to the Hub, where this name may come from; a copy here has none.
        base = resolve(location, None if Path(location).exists() else config.revision)
    except InputError as error:
        raise InputError(f"{config.path}: its base model: {error}; {advice}") from error
    if base.path.resolve() == folder.resolve():
        raise InputError(f"{config.path}: names its own folder as its base model; {advice}")
    return location, base
