"""A private folder through which transformers reads a source: only what cgconvert itself admitted.

transformers trusts the files of a checkpoint. A configuration can name other weights
(`transformers_weights`), other tokenizer files (`fast_tokenizer_files`), code (`auto_map`),
adapters or kernels, and these may lie outside the folder. So transformers never sees the source's
own folder. It sees links to the weight files that cgconvert's reader checked, under the names that
transformers expects, and JSON files with the entries of an allow-list.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from cgconvert.formats.huggingface.admitted_entries import (
    MODEL_ENTRIES,
    TOKEN_FIELDS,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    without_further_fields,
)
from cgconvert.formats.huggingface.loader_entries import TOKENIZER_CLASSES
from cgconvert.io.admitted import AdmittedFiles
from cgconvert.io.strict_json import read_json, read_text
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.tokenizer_files import TOKENIZER_FILES
from cgconvert.verification.witness.adapters import adapter_weights
from cgconvert.verification.witness.opening import NoWitnessError

__all__ = [
    "link_weights", "stored_tokens", "write_config", "write_tokenizer",
    "write_tokenizer_files",
]  # fmt: skip

LAYOUTS = ("torch", "safetensors", "phi", "gptj")
"""The layouts that transformers loads; it has no reader for Jaxformer, and none of our ONNX."""

ROLES = (
    "bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token",
)  # fmt: skip
DEFAULT_ROLES, END = ROLES[:3], "<|endoftext|>"
"""The roles that transformers' classes give to GPT-2's end of text where no file names a token."""

EXTRA_TOKENS = ("additional_special_tokens", "extra_special_tokens")
ROLES_FILE, ROLE_KEYS = "special_tokens_map.json", (*ROLES, *EXTRA_TOKENS)
SAFETENSORS, TORCH = ".safetensors", (".bin", ".pt", ".pth", ".ckpt")
"""Suffixes of weight files; cgconvert's reader has interpreted the pickles of the latter."""

TEMPLATE_FILE, TEMPLATE_FOLDER = "chat_template.jinja", "additional_chat_templates"
OLD_TEMPLATE_FILE = "chat_template.json"
MAX_TEMPLATES = 32


def link_weights(source: Checkpoint, view: AdmittedFiles) -> bool:
    """Link the source's weight files into the private folder, under names that transformers loads.

    Returns whether they are safetensors. Raises NoWitnessError if transformers would not load them.
    """
    _check_layout(source)
    adapters = adapter_weights(source)
    files = [path for path in source.files if path not in adapters]
    weights = [path for path in files if path.suffix in (SAFETENSORS, *TORCH)]
    is_safetensors = any(path.suffix == SAFETENSORS for path in weights)
    if not weights or len({path.suffix for path in weights}) > 1:
        raise NoWitnessError("its weight files have names that transformers does not load")
    name = "model.safetensors" if is_safetensors else "pytorch_model.bin"
    if len(weights) == 1:
        view.link(name, weights[0])
        return is_safetensors
    index = read_json(weights[0].with_name(f"{name}.index.json")).get("weight_map")
    weight_map = index if isinstance(index, dict) else {}
    shards = {path.name: path for path in weights}
    if set(weight_map.values()) != set(shards):
        raise NoWitnessError("its index names other files than were read")
    for shard, path in shards.items():
        view.link(shard, path)
    view.write_json(f"{name}.index.json", {"metadata": {}, "weight_map": weight_map})
    return is_safetensors


def write_config(source: Checkpoint, folder: Path) -> None:
    """Write a config.json for transformers into the private folder: the source's, cut down.

    It has only the entries in MODEL_ENTRIES for the type of the model. Raises NoWitnessError if
    transformers has no class of its own for the model.
    """
    _check_layout(source)
    if source.config.get("auto_map"):
        raise NoWitnessError("its model needs code that comes with it, which is never run")
    model_type = source.config.get("model_type")
    if not _is_known(source.config):
        raise NoWitnessError(f"transformers has no model_type {model_type!r}")
    config = _only(source.config, ("model_type", *MODEL_ENTRIES[str(model_type)]))
    _write(folder / "config.json", config)


def write_tokenizer(source: Checkpoint, view: AdmittedFiles) -> bool:
    """Write the source's tokenizer files into the private folder.

    Returns whether they come with the source. If they do not, they are GPT-2's, to which a release
    of CodeGen adds runs of white space. Raises NoWitnessError if transformers has no class of its
    own for the tokenizer, or if the user gave another tokenizer.
    """
    _check_layout(source)
    if "tokenizer" in source.origin:
        raise NoWitnessError("the tokenizer is not the source's: it was given with `tokenizer`")
    files = {path.name: path for path in source.files if path.name in TOKENIZER_FILES}
    if not files:
        raise NoWitnessError("the source has no tokenizer files")
    stored = next(iter(files.values())).parent
    write_tokenizer_files(stored, files, source.config, view)
    # The folder of GPT-2's tokenizer has nothing else of the source.
    others = [path for path in source.files if path.name not in (*TOKENIZER_FILES, TEMPLATE_FILE)]
    return stored.resolve() in {path.parent.resolve() for path in others}


def write_tokenizer_files(
    stored: Path, files: Mapping[str, Path], config: Mapping[str, Any], view: AdmittedFiles
) -> None:
    """Write the tokenizer in the folder `stored` into the private folder.

    Args:
        stored: The folder of the tokenizer.
        files: Those of its files that are used, by name.
        config: The contents of the model's config.json, which may name the tokenizer's class.
        view: The private folder.

    Raises:
        NoWitnessError: transformers has no class of its own for the tokenizer.
    """
    folder = view.folder
    entries = read_json(files["tokenizer_config.json"]) if "tokenizer_config.json" in files else {}
    entries["tokenizer_class"] = _tokenizer_class(entries, config, "tokenizer.json" in files)
    if "tokenizer.json" in files:
        _write(folder / "tokenizer.json", _tokenizer_json(read_json(files["tokenizer.json"])))
    else:
        for name in files.keys() & {"vocab.json", "merges.txt"}:
            view.link(name, files[name])
    if "added_tokens.json" in files:
        _write(folder / "added_tokens.json", read_json(files["added_tokens.json"]))
    roles = read_json(files[ROLES_FILE]) if ROLES_FILE in files else {}
    _write(folder / "tokenizer_config.json", _plain(_only(entries, TOKENIZER_CONFIG)))
    stored_texts = stored_tokens(folder)
    entries, roles = (
        _plain(_only(configuration, (*keys, *_further_roles(configuration, stored_texts))))
        for configuration, keys in ((entries, TOKENIZER_CONFIG), (roles, ROLE_KEYS))
    )
    # transformers appends a token that no file stores, and then finds it in texts.
    unnamed = {role for role in DEFAULT_ROLES if role not in entries and role not in roles}
    for configuration in (entries, roles):
        _leave_out_unstored(configuration, stored_texts)
    if END not in stored_texts:
        entries |= dict.fromkeys(unnamed)
    _write(folder / "tokenizer_config.json", entries)
    if ROLES_FILE in files:
        _write(folder / ROLES_FILE, roles)
    # AutoTokenizer asks for the model's type first.
    _write(folder / "config.json", _only(config, ("model_type",)) if _is_known(config) else {})
    _write_templates(stored, folder)


def _leave_out_unstored(entries: dict[str, Any], stored: frozenset[str]) -> None:
    """Take the tokens that no file stores out of the roles and the extra special tokens."""
    for role in ROLES:
        if role in entries and _text(entries[role]) not in stored:
            entries[role] = None
    for key in EXTRA_TOKENS:
        tokens = entries.get(key)
        if isinstance(tokens, list):
            entries[key] = [token for token in tokens if _text(token) in stored]
        elif isinstance(tokens, dict):
            entries[key] = {k: token for k, token in tokens.items() if _text(token) in stored}


def _text(token: object) -> object:
    """The text of a token, which is a string or an object with the text as `content`."""
    return token.get("content") if isinstance(token, dict) else token


def stored_tokens(folder: Path) -> frozenset[str]:
    """The texts of all tokens that the tokenizer files in a private folder give an id."""
    tokens: set[str] = set()
    for name in ("vocab.json", "added_tokens.json"):
        tokens |= _read_object(folder / name).keys()
    tokenizer = _read_object(folder / "tokenizer.json")
    vocabulary = tokenizer.get("model", {}).get("vocab")
    tokens |= vocabulary.keys() if isinstance(vocabulary, dict) else set()
    decoder = _read_object(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    entries = [*tokenizer.get("added_tokens", ()), *decoder.values()]
    return frozenset(tokens | {str(entry.get("content")) for entry in entries})


def _further_roles(entries: Mapping[str, Any], tokens: Collection[str]) -> list[str]:
    """The keys that name one of `tokens` for a role of its own, such as image_token."""
    texts = {key: _text(value) for key, value in entries.items() if key.endswith("_token")}
    return [
        key
        for key, text in texts.items()
        if key not in ROLES and isinstance(text, str) and text in tokens
    ]


def _tokenizer_class(
    entries: Mapping[str, Any], config: Mapping[str, Any], has_tokenizer_json: bool
) -> str | None:
    """The class with which transformers opens a tokenizer; None: that of the model's type."""
    names = [entries.get("tokenizer_class"), config.get("tokenizer_class")]
    declared = next((name for name in names if isinstance(name, str)), None)
    if declared in TOKENIZER_CLASSES or (declared is None and _is_known(config)):
        return declared
    if not has_tokenizer_json:
        raise NoWitnessError(f"transformers has no tokenizer class {declared!r}")
    return "PreTrainedTokenizerFast"


def _is_known(config: Mapping[str, Any]) -> bool:
    """Whether transformers has the model's type."""
    model_type = config.get("model_type")
    return isinstance(model_type, str) and model_type in MODEL_ENTRIES


def _write_templates(stored: Path, folder: Path) -> None:
    """Copy the chat templates that have files of their own."""
    templates = [stored / TEMPLATE_FILE, *sorted((stored / TEMPLATE_FOLDER).glob("*.jinja"))]
    for path in templates[:MAX_TEMPLATES]:
        if path.is_file():
            target = folder / path.relative_to(stored)
            target.parent.mkdir(exist_ok=True)
            target.write_text(read_text(path), encoding="utf-8")
    # Only transformers' processors read this file; it counts where there is no other template.
    old = _read_object(stored / OLD_TEMPLATE_FILE).get("chat_template")
    inline = _read_object(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(old, str) and not inline and not any(map(Path.is_file, templates)):
        (folder / TEMPLATE_FILE).write_text(old, encoding="utf-8")


def _check_layout(source: Checkpoint) -> None:
    if source.layout not in LAYOUTS:
        raise NoWitnessError(f"transformers does not read the layout {source.layout}")


def _tokenizer_json(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer.json without padding and truncation, and added tokens without unknown fields."""
    added = stored.get("added_tokens")
    tokens = added if isinstance(added, list) else []
    return {
        **_only(stored, TOKENIZER_JSON),
        "truncation": None,
        "padding": None,
        "added_tokens": [_only(token, ("id", *TOKEN_FIELDS)) for token in tokens],
    }


def _plain(entries: dict[str, Any]) -> dict[str, Any]:
    """Leave out the fields of tokens that transformers' AddedToken does not have."""
    return {key: without_further_fields(value) for key, value in entries.items()}


def _only(entries: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """The entries whose key is one of `keys`."""
    return {key: value for key, value in entries.items() if key in keys}


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file is absent."""
    return read_json(path) if path.is_file() else {}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
