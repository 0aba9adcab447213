"""The entries of an artefact's JSON files that a runtime gets to see: allowed keys, plain values.

transformers makes an attribute of each entry of a config.json, and an argument of each entry of a
tokenizer_config.json, and new versions obey new ones. So the runtime gets only the
entries on which the computation depends. `loader_entries` has those that load something else.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.formats.huggingface.loader_entries import (
    CLASSES,
    TOKENIZER_CLASSES,
    loaded_config_entries,
    loaded_tokenizer_entries,
)
from cgconvert.io.admitted import AdmittedFiles
from cgconvert.io.strict_json import read_json

__all__ = [
    "MODEL_ENTRIES", "TOKENIZER_CONFIG", "TOKENIZER_JSON", "TOKEN_FIELDS", "admit_configuration",
    "admit_tokenizer", "without_further_fields",
]  # fmt: skip

SIZES = (
    "vocab_size", "n_positions", "n_ctx", "n_embd", "n_layer", "n_head", "n_inner", "rotary_dim",
    "activation_function", "layer_norm_epsilon", "tie_word_embeddings", "max_position_embeddings",
    "hidden_size", "num_hidden_layers", "num_attention_heads",
)  # fmt: skip
"""Entries of CodeGen's and of GPT-J's config.json on which the logits depend. The last ones are
other names of the same entries (configuration_codegen.py: attribute_map)."""

MODEL_ENTRIES: Mapping[str, Collection[str]] = {
    "codegen": SIZES,
    "gptj": SIZES,
    "phi": (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "hidden_act", "max_position_embeddings",
        "layer_norm_eps", "tie_word_embeddings", "qk_layernorm", "rope_theta", "rope_scaling",
        "rope_parameters", "partial_rotary_factor",
    ),
}  # fmt: skip
"""The entries of a config.json on which the logits depend, by model type."""

IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

TOKENIZER_JSON = (
    "version", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model",
)  # fmt: skip
"""Entries of tokenizer.json; `padding` and `truncation` would change what a call returns."""

ROLES = (
    "bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token",
    "additional_special_tokens", "extra_special_tokens",
)  # fmt: skip

TOKENIZER_CONFIG = (
    *ROLES, "added_tokens_decoder", "add_prefix_space", "add_bos_token", "add_eos_token",
    "clean_up_tokenization_spaces", "errors", "chat_template", "tokenizer_class",
)  # fmt: skip

TOKEN_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special", "__type")
"""The fields of a token that has flags (transformers: AddedToken)."""

MODEL_MAX_LENGTH = "model_max_length"
MOST_CHARACTERS = 1 << 12
"""The longest text that is the value of an entry, such as a token."""


def admit_configuration(files: AdmittedFiles) -> None:
    """Let the runtime have the allowed entries of config.json and generation_config.json.

    Raises InputError if an entry would load something else, or has a value of another form.
    """
    path = files.folder / "config.json"
    config = read_json(path)
    _refuse(path, loaded_config_entries(config))
    model_type = str(config.get("model_type"))
    keys = (*MODEL_ENTRIES.get(model_type, SIZES), *IDS, "tokenizer_class", "use_cache")
    entries = {"model_type": model_type, **_plain_entries(path, config, keys)}
    if model_type in CLASSES:
        entries["architectures"] = [CLASSES[model_type]]
    files.write_json(path.name, entries)
    path = files.folder / "generation_config.json"
    if path.is_file():
        generation = read_json(path)
        _refuse(path, loaded_config_entries(generation))
        files.write_json(path.name, _plain_entries(path, generation, IDS))


def admit_tokenizer(files: AdmittedFiles, *, with_template: bool) -> None:
    """Let the runtime have the allowed entries of the tokenizer's files.

    Raises as `admit_configuration`.

    Args:
        files: The artefact's files, all of the tokenizer's among them.
        with_template: Whether the runtime parses the chat template in tokenizer_config.json.
    """
    path = files.folder / "tokenizer_config.json"
    if path.is_file():
        config = read_json(path)
        _refuse(path, loaded_tokenizer_entries(config))
        keys = [*TOKENIZER_CONFIG, MODEL_MAX_LENGTH, *_roles(config)]
        entries = _plain_entries(path, config, [key for key in keys if key != "chat_template"])
        if with_template and "chat_template" in config:
            entries["chat_template"] = config["chat_template"]
        files.write_json(path.name, entries)
    path = files.folder / "special_tokens_map.json"
    if path.is_file():
        roles = read_json(path)
        files.write_json(path.name, _plain_entries(path, roles, [*ROLES, *_roles(roles)]))
    path = files.folder / "tokenizer.json"
    if path.is_file():
        stored = read_json(path)
        tokenizer = {key: value for key, value in stored.items() if key in TOKENIZER_JSON}
        files.write_json(path.name, tokenizer | {"truncation": None, "padding": None})


def _refuse(path: Path, loaded: list[str]) -> None:
    """Raise InputError if a configuration has an entry that loads something else."""
    if loaded:
        raise InputError(f"{path}: refused: {loaded[0]}; take the entry out, or convert again")


def _roles(entries: Mapping[str, Any]) -> list[str]:
    """The keys that name a token for a role of its own, such as image_token."""
    return [key for key in entries if key.endswith("_token")]


def _plain_entries(path: Path, entries: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """The entries with one of the keys. Raises InputError if a value is nested or long."""
    allowed = {key: value for key, value in entries.items() if key in keys}
    for key, value in allowed.items():
        if not _is_plain(value, depth=2):
            raise InputError(
                f"{path}: refused: {key} is {reprlib.repr(value)}, which no such entry is"
            )
    tokenizer_class = allowed.get("tokenizer_class")
    if tokenizer_class is not None:  # our constant, not the text of the file
        allowed["tokenizer_class"] = TOKENIZER_CLASSES[TOKENIZER_CLASSES.index(tokenizer_class)]
    return {key: without_further_fields(value) for key, value in allowed.items()}


def _is_plain(value: object, depth: int) -> bool:
    """Whether a value is a number or a short text, or a list or an object of such ones."""
    if isinstance(value, str):
        return len(value) <= MOST_CHARACTERS
    if isinstance(value, dict):
        return depth > 0 and all(_is_plain(part, depth - 1) for part in value.values())
    if isinstance(value, list):
        return depth > 0 and all(_is_plain(part, depth - 1) for part in value)
    return value is None or isinstance(value, int | float)


def without_further_fields(value: Any) -> Any:
    """Leave out the fields of tokens that transformers' AddedToken does not have."""
    if isinstance(value, list):
        return [without_further_fields(part) for part in value]
    if not isinstance(value, dict):
        return value
    if "content" in value:
        return {key: part for key, part in value.items() if key in TOKEN_FIELDS}
    return {key: without_further_fields(part) for key, part in value.items()}
