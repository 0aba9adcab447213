"""Mistakes in a GGUF file's metadata, its tensors untouched."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFValueType, GGUFWriter, ReaderField, TokenType
from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

from cgconvert.model.checkpoint import Checkpoint
from cgconvert.model.tokenizer import WHITESPACE_RUNS
from tests.mutations.mutation import GEOMETRY, Mutation, in_files

__all__ = ["KEYS"]

TYPES = ("gguf-F16", "gguf-Q4_0")
TOKENIZER = "tokenizer.ggml."
TOKENS = ("tokenizer.ids", "tokenizer.files")
Values = Mapping[str, Any]


def key(
    name: str, caught_by: tuple[str, ...], change: Callable[[Values, Checkpoint], Values]
) -> Mutation:
    """`change` is given the metadata and returns what is new in it."""

    def on(artefact: Path, source: Checkpoint) -> None:
        reader = GGUFReader(artefact)
        old = {name: field.contents() for name, field in reader.fields.items()}
        writer = GGUFWriter(artefact.with_suffix(".new"), "phi2")
        changed = change(old, source)
        new = {name: _details(value, reader.fields.get(name)) for name, value in changed.items()}
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            copy_with_new_metadata(reader, writer, new, [])
        artefact.with_suffix(".new").replace(artefact)

    return in_files(name, "metadata", caught_by, on, TYPES)


def _details(value: Any, old: ReaderField | None) -> MetadataDetails:
    """In the type that the key has already, if it is there."""
    kinds = old.types if old else [GGUFValueType.get_type(value)]
    return MetadataDetails(kinds[0], value, sub_type=kinds[1] if len(kinds) > 1 else None)


def said(key: str, value: Any) -> Callable[[Values, Checkpoint], Values]:
    return lambda old, source: {key: value}


def white_space(kind: TokenType) -> Callable[[Values, Checkpoint], Values]:
    def change(old: Values, source: Checkpoint) -> Values:
        types = list(old[f"{TOKENIZER}token_type"])
        for token in source.tokenizer.added:
            if token.content in WHITESPACE_RUNS:
                types[token.id] = int(kind)
        return {f"{TOKENIZER}token_type": types}

    return change


def merges(change: Callable[[list[str]], list[str]]) -> Callable[[Values, Checkpoint], Values]:
    name = f"{TOKENIZER}merges"
    return lambda old, source: {name: change(old[name])}


KEYS = (
    key("rotary base in the metadata", GEOMETRY, said("phi2.rope.freq_base", 500000.0)),
    key("rotary width in the metadata", GEOMETRY, said("phi2.rope.dimension_count", 16)),
    key("rotary scaled in the metadata", GEOMETRY,
        lambda old, source: {"phi2.rope.scaling.type": "linear",
                             "phi2.rope.scaling.factor": 4.0}),
    key("attention that sees what follows", GEOMETRY, said("phi2.attention.causal", False)),
    key("epsilon in the metadata", GEOMETRY, said("phi2.attention.layer_norm_epsilon", 1e-6)),
    key("twice the heads in the metadata", GEOMETRY,
        lambda old, source: {"phi2.attention.head_count": 8, "phi2.attention.head_count_kv": 8}),
    key("half the context in the metadata", ("context",),
        lambda old, source: {"phi2.context_length": source.geometry.n_positions // 2}),
    key("end of text 2 in the metadata", ("end_of_text", "settings"),
        said(f"{TOKENIZER}eos_token_id", 2)),
    key("beginning of text 1 in the metadata", ("settings",),
        said(f"{TOKENIZER}bos_token_id", 1)),
    key("beginning of text added in the metadata", (*TOKENS, "settings"),
        said(f"{TOKENIZER}add_bos_token", True)),
    key("another model's pre-tokenizer", (*TOKENS, "settings"),
        said(f"{TOKENIZER}pre", "llama-bpe")),
    key("a real token suppressed", ("settings",), said(f"{TOKENIZER}suppress_tokens", [70, 71])),
    key("white-space tokens ordinary in the metadata", TOKENS, white_space(TokenType.NORMAL)),
    key("white-space tokens control tokens", ("tokenizer.files",), white_space(TokenType.CONTROL)),
    key("merges in reverse order in the metadata", TOKENS, merges(lambda m: m[::-1])),
    key("half of the merges lost in the metadata", TOKENS, merges(lambda m: m[: len(m) // 2])),
)  # fmt: skip
