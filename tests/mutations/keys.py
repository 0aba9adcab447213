"""Bugs in the metadata of a GGUF file whose tensors are right."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFValueType, GGUFWriter, ReaderField, TokenType
from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

from cgconvert.model.decoder import Checkpoint
from cgconvert.model.tokenizer import WHITESPACE_RUNS
from tests.mutations.mutation import GEOMETRY, Mutation, in_files

__all__ = ["KEYS"]

TYPES = ("gguf-F16", "gguf-Q4_0")
TOKENIZER = "tokenizer.ggml."
TOKENS = ("tokenizer.ids", "tokenizer.files")
Values = Mapping[str, Any]


def metadata_mutation(
    name: str, caught_by: tuple[str, ...], change: Callable[[Values, Checkpoint], Values]
) -> Mutation:
    """A bug in the metadata; `change` gets the old entries and returns those to replace."""

    def change_file(artefact: Path, source: Checkpoint) -> None:
        reader = GGUFReader(artefact)
        old = {name: field.contents() for name, field in reader.fields.items()}
        writer = GGUFWriter(artefact.with_suffix(".new"), "phi2")
        changed = change(old, source)
        new = {
            name: _metadata_value(value, reader.fields.get(name)) for name, value in changed.items()
        }
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            copy_with_new_metadata(reader, writer, new, [])
        artefact.with_suffix(".new").replace(artefact)

    return in_files(name, "metadata", caught_by, change_file, TYPES)


def _metadata_value(value: Any, old: ReaderField | None) -> MetadataDetails:
    """Return a value in the type that the key already has, if it exists."""
    kinds = old.types if old else [GGUFValueType.get_type(value)]
    return MetadataDetails(kinds[0], value, sub_type=kinds[1] if len(kinds) > 1 else None)


def set_key(key: str, value: Any) -> Callable[[Values, Checkpoint], Values]:
    return lambda old, source: {key: value}


def set_whitespace_type(kind: TokenType) -> Callable[[Values, Checkpoint], Values]:
    def change(old: Values, source: Checkpoint) -> Values:
        types = list(old[f"{TOKENIZER}token_type"])
        for token in source.tokenizer.added:
            if token.content in WHITESPACE_RUNS:
                types[token.id] = int(kind)
        return {f"{TOKENIZER}token_type": types}

    return change


def change_merges(
    change: Callable[[list[str]], list[str]],
) -> Callable[[Values, Checkpoint], Values]:
    name = f"{TOKENIZER}merges"
    return lambda old, source: {name: change(old[name])}


KEYS = (
    metadata_mutation(
        "rotary base in the metadata", GEOMETRY, set_key("phi2.rope.freq_base", 500000.0)
    ),
    metadata_mutation(
        "rotary width in the metadata", GEOMETRY, set_key("phi2.rope.dimension_count", 16)
    ),
    metadata_mutation(
        "rotary scaled in the metadata",
        GEOMETRY,
        lambda old, source: {"phi2.rope.scaling.type": "linear", "phi2.rope.scaling.factor": 4.0},
    ),
    metadata_mutation(
        "attention that sees what follows", GEOMETRY, set_key("phi2.attention.causal", False)
    ),
    metadata_mutation(
        "epsilon in the metadata", GEOMETRY, set_key("phi2.attention.layer_norm_epsilon", 1e-6)
    ),
    metadata_mutation(
        "twice the heads in the metadata",
        GEOMETRY,
        lambda old, source: {"phi2.attention.head_count": 8, "phi2.attention.head_count_kv": 8},
    ),
    metadata_mutation(
        "half the context in the metadata",
        ("context",),
        lambda old, source: {"phi2.context_length": source.geometry.n_positions // 2},
    ),
    metadata_mutation(
        "end of text 2 in the metadata",
        ("end_of_text", "settings"),
        set_key(f"{TOKENIZER}eos_token_id", 2),
    ),
    metadata_mutation(
        "beginning of text 1 in the metadata", ("settings",), set_key(f"{TOKENIZER}bos_token_id", 1)
    ),
    metadata_mutation(
        "beginning of text added in the metadata",
        (*TOKENS, "settings"),
        set_key(f"{TOKENIZER}add_bos_token", True),
    ),
    metadata_mutation(
        "another model's pre-tokenizer",
        (*TOKENS, "settings"),
        set_key(f"{TOKENIZER}pre", "llama-bpe"),
    ),
    metadata_mutation(
        "a real token suppressed", ("settings",), set_key(f"{TOKENIZER}suppress_tokens", [70, 71])
    ),
    metadata_mutation(
        "white-space tokens ordinary in the metadata", TOKENS, set_whitespace_type(TokenType.NORMAL)
    ),
    metadata_mutation(
        "white-space tokens control tokens",
        ("tokenizer.files",),
        set_whitespace_type(TokenType.CONTROL),
    ),
    metadata_mutation(
        "merges in reverse order in the metadata", TOKENS, change_merges(lambda m: m[::-1])
    ),
    metadata_mutation(
        "half of the merges lost in the metadata", TOKENS, change_merges(lambda m: m[: len(m) // 2])
    ),
)
