"""Special tokens, templates and ids of texts as transformers' tokenizer gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cgconvert.formats.gguf.header import read_header
from cgconvert.formats.onnx.files import folder_of, graphs
from cgconvert.io.strict_json import read_json
from cgconvert.model import family
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.tokenizer_files import TOKENIZER_FILES
from cgconvert.verification.witness.opening import private_folder, separate_transformers
from cgconvert.verification.witness.view import (
    stored_tokens,
    write_tokenizer,
    write_tokenizer_files,
)

__all__ = ["TokenReading", "TokenizerReading", "read_artefact_tokens", "read_stop_ids",
           "read_tokenizer"]  # fmt: skip

CODEGEN_ROWS = 51200
"""Rows of a CodeGen that was published as GPT-J. Any other GPT-J has GPT-2's vocabulary."""

GGUF_TEMPLATE = "tokenizer.chat_template"
CONTROL = 3
"""The token_type of a special token in a GGUF (llama.h: LLAMA_TOKEN_TYPE_CONTROL)."""


@dataclass(frozen=True)
class TokenReading:
    """Special tokens and chat templates of a source or an artefact.

    Attributes:
        special_ids: The ids of bos, eos, unk and pad; None for a role that no stored token has.
        role_texts: The texts of these tokens, by role.
        special: The texts of all special tokens but white space, which is text.
        templates: The chat templates by name; a single one is called "default".
    """

    special_ids: Mapping[str, int | None]
    role_texts: Mapping[str, str]
    special: frozenset[str]
    templates: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, answer: Mapping[str, Any], stored: frozenset[str]) -> TokenReading:
        """Make it of transformers' answer about files that store the tokens `stored`.

        transformers gives an id of its own to a token that a configuration names and no file
        stores; such a token is left out.
        """
        texts = answer["tokens"]
        special_ids = {
            role: index if texts[role] in stored else None for role, index in answer["ids"].items()
        }
        special = {token for token in answer["special"] if token.strip(" \t")}
        return cls(special_ids, texts, frozenset(special & stored), answer["templates"])


@dataclass(frozen=True)
class TokenizerReading:
    """The source's tokenizer as transformers reads it.

    Attributes:
        is_own: Whether its files come with the source; if not, they are GPT-2's with CodeGen's
            runs of white space.
        texts: By text, its ids and the text that is decoded from them.
        tokens: Its special tokens and chat templates.
        special_numbers: The ids of all special tokens.
    """

    is_own: bool
    texts: Mapping[str, tuple[tuple[int, ...], str]] = field(repr=False)
    tokens: TokenReading
    special_numbers: frozenset[int]


def read_tokenizer(source: Checkpoint, texts: Sequence[str]) -> TokenizerReading:
    """Read the source's tokenizer, and encode and decode the texts with it."""
    with private_folder() as view:
        is_own = write_tokenizer(source, view)
        with separate_transformers(view.folder) as transformers:
            answer = transformers.ask("tokenizer", texts, _may_lack_runs(source, is_own=is_own))
        tokens = TokenReading.of(answer, stored_tokens(view.folder))
    readings = {text: (tuple(ids), decoded) for text, ids, decoded in answer["texts"]}
    return TokenizerReading(is_own, readings, tokens, frozenset(answer["special_ids"]))


def read_artefact_tokens(artefact: Path) -> TokenReading:
    """Read special tokens and templates of an artefact: its folder by transformers, or its GGUF.

    Raises NoWitnessError if transformers cannot open the tokenizer, InputError if a file is broken.
    """
    if graphs(artefact):
        artefact = folder_of(graphs(artefact)[0])  # one of several graphs there
    if artefact.is_file():
        return _read_gguf_tokens(artefact)
    files = {n: artefact / n for n in TOKENIZER_FILES if (artefact / n).is_file()}
    config = artefact / "config.json"
    with private_folder() as view:
        write_tokenizer_files(artefact, files, read_json(config) if config.is_file() else {}, view)
        with separate_transformers(view.folder) as transformers:
            answer = transformers.ask("tokenizer", (), False)
        return TokenReading.of(answer, stored_tokens(view.folder))


def _read_gguf_tokens(path: Path) -> TokenReading:
    """Read the keys of a GGUF from which llama.cpp takes special tokens and templates."""
    metadata = read_header(path).metadata
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {role: metadata.get(f"tokenizer.ggml.{key}_token_id") for role, key in keys.items()}
    templates = {
        key.removeprefix(GGUF_TEMPLATE).removeprefix(".") or "default": value
        for key, value in metadata.items()
        if isinstance(value, str) and (key == GGUF_TEMPLATE or key.startswith(f"{GGUF_TEMPLATE}."))
    }
    arrays = (metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    tokens, types = (value if isinstance(value, list | np.ndarray) else [] for value in arrays)
    special = {text for text, kind in zip(tokens, types, strict=False) if kind == CONTROL}
    texts = {
        role: str(tokens[index])
        for role, index in ids.items()
        if isinstance(index, int) and 0 <= index < len(tokens)
    }
    return TokenReading(ids, texts, frozenset(special), templates)


def _may_lack_runs(source: Checkpoint, *, is_own: bool) -> bool:
    """Whether GPT-2's tokenizer as it stands would lack a CodeGen's runs of white space.

    That is so for a source without a tokenizer, and for a release with GPT-2's files.
    """
    if source.config.get("model_type") == "gptj" and source.geometry.vocab_size != CODEGEN_ROWS:
        return False
    is_release = family.is_published_checkpoint(source.name) and "GPT2" not in str(
        _declared_class(source)
    )
    return not is_own or is_release


def _declared_class(source: Checkpoint) -> object:
    """The tokenizer_class that tokenizer_config.json names."""
    paths = [path for path in source.files if path.name == "tokenizer_config.json"]
    return read_json(paths[0]).get("tokenizer_class") if paths else None


def read_stop_ids(source: Checkpoint, tokenizer: TokenizerReading | None) -> tuple[int, ...]:
    """Read the ids at which the source stops: the tokenizer's eos, and those of its settings.

    The settings are generation_config.json, or without it those in config.json, as in transformers.
    An eos 2 of CodeGen's old configurations is an ordinary token, and left out. Without the
    tokenizer no id is known to be all of them, or to be more than an old 2.
    """
    if tokenizer is None:
        return ()
    eos = tokenizer.tokens.special_ids["eos"]
    paths = [path for path in source.files if path.name == "generation_config.json"]
    settings = read_json(paths[0]) if paths else source.config
    value = settings.get("eos_token_id")
    ids = [index for index in (value if isinstance(value, list) else [value]) if _is_id(index)]
    is_old = settings.get("bos_token_id") == 1 or len(ids) == 1
    if is_old and 2 not in tokenizer.special_numbers:
        ids = [index for index in ids if index != 2]
    rows = source.geometry.vocab_size
    stops = [index for index in (eos, *ids) if index is not None and 0 <= index < rows]
    return tuple(dict.fromkeys(stops))


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
