"""Admit a GGUF file to llama.cpp, and compare it with the source: tensors, geometry, vocabulary.

`admit_gguf` runs before llama.cpp gets a file, which has to be a whole CodeGen without keys that
llama.cpp would obey.

This module computes keys and the vocabulary a second time on purpose: a check that shared the
writer's code would share its mistakes.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import TokenType

from cgconvert.errors import InputError
from cgconvert.formats.comparison import (
    ABSENT,
    SettingsDifferences,
    StoredArtefact,
    entry_differences,
    expected_tensors,
    pair_tensors,
    value_differences,
)
from cgconvert.formats.gguf import reader
from cgconvert.formats.gguf.generation import (
    CHAT_TEMPLATE,
    CHAT_TEMPLATES,
    ENDING_TEXTS,
    SAMPLING_PREFIX,
    TEMPLATE_NAME,
)
from cgconvert.formats.gguf.header import GgufHeader, read_header
from cgconvert.formats.gguf.split import refuse_split
from cgconvert.formats.gguf.type_names import TYPE_KEY, contradictions
from cgconvert.formats.gguf.writer import (
    ADJUSTED,
    ARCHITECTURE,
    IMATRIX,
    PRE_TOKENIZER,
    SUPPRESSED,
)
from cgconvert.model.chat_templates import DEFAULT, MAX_CHARACTERS
from cgconvert.model.decoder import Checkpoint, Decoder
from cgconvert.model.dtype import FLOAT32
from cgconvert.model.tensor import Zeros
from cgconvert.model.tensor_names import GGUF
from cgconvert.model.tokenizer import Tokenizer

__all__ = ["admit_gguf", "kept_eos_ids", "settings", "stored_artefact"]

TOKENIZER_PREFIX = "tokenizer.ggml."
END_ROLES = ("eos", "eot", "eom")
"""The roles of the tokens at which llama.cpp stops."""
TOKEN_ADDING = ("add_bos_token", "add_eos_token")


def stored_artefact(path: Path, source: Decoder) -> StoredArtefact:
    """Pair a file's tensors with the source's, and compare its metadata with the geometry."""
    header, g = read_header(path), source.geometry
    sizes: dict[str, Any] = {
        "context_length": g.n_positions,
        "embedding_length": g.n_embd,
        "feed_forward_length": g.n_inner,
        "block_count": g.n_layer,
        "attention.head_count": g.n_head,
        "attention.head_count_kv": g.n_head,
        "attention.layer_norm_epsilon": float(np.float32(g.layer_norm_epsilon)),
        "rope.dimension_count": g.rotary_dim,
        "rope.freq_base": float(np.float32(g.rotary_base)),
    }
    expected = {f"{ARCHITECTURE}.{key}": value for key, value in sizes.items()}
    differences = value_differences(
        header.metadata, {"general.architecture": ARCHITECTURE} | expected
    )
    # llama.cpp uses keys that no CodeGen has, such as scaling of the rotary embedding.
    differences += [
        f"{key} is there, and CodeGen has none"
        for key in header.metadata
        if key.startswith(f"{ARCHITECTURE}.") and key not in expected
    ]
    tensors = reader.tensors(path, header)
    adjusted = header.metadata.get(ADJUSTED)
    return replace(
        pair_tensors(tensors, dict(expected_tensors(source, GGUF)), GGUF, g, differences),
        adjusted=frozenset(adjusted if isinstance(adjusted, list) else ()),
        weighted=f"{IMATRIX}.file" in header.metadata,
    )


def settings(path: Path, source: Checkpoint) -> SettingsDifferences:
    """Compare ids, settings of sampling, chat templates and vocabulary with the source's."""
    header = read_header(path)
    metadata = header.metadata
    entries = {  # an array where a number should be differs from it, and is no error
        key: value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in metadata.items()
    }
    return SettingsDifferences(
        [
            *_id_differences(entries, source),
            *_sampling_differences(entries, source),
            *_template_differences(entries, source.tokenizer),
            *contradictions(header),
        ],
        _vocabulary_differences(entries, source.tokenizer, source.geometry.vocab_size),
    )


def kept_eos_ids(source: Checkpoint) -> tuple[int, ...]:
    """Return those ids at which a source stops that a file can name: three at most.

    The tokenizer's own is the first; those that llama.cpp knows by their text are the last.
    """
    texts = {token.id: token.content for token in source.tokenizer.added}
    own, *further = source.eos_token_ids
    unknown = [index for index in further if texts.get(index) not in ENDING_TEXTS]
    known = [index for index in further if texts.get(index) in ENDING_TEXTS]
    return (own, *unknown, *known)[: len(END_ROLES)]


def _id_differences(metadata: Mapping[str, Any], source: Checkpoint) -> list[str]:
    """Compare the ids of tokens with a role, and the ids at which llama.cpp stops."""
    tokenizer = source.tokenizer
    ids = {
        "eos": tokenizer.eos_token_id,
        "bos": tokenizer.bos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    by_token = {token.content: token.id for token in tokenizer.added}
    for role, key in (("sep_token", "seperator"), ("mask_token", "mask")):
        if role in tokenizer.extra_roles:
            ids[key] = by_token[tokenizer.extra_roles[role]]
    expected = {f"{TOKENIZER_PREFIX}{role}_token_id": index for role, index in ids.items()}
    differences = entry_differences("", metadata, expected)
    named = {
        role: metadata[f"{TOKENIZER_PREFIX}{role}_token_id"]
        for role in END_ROLES
        if f"{TOKENIZER_PREFIX}{role}_token_id" in metadata
    }
    differences += [
        f"{TOKENIZER_PREFIX}{role}_token_id is {reprlib.repr(index)}, and the source goes on there"
        for role, index in named.items()
        if role != "eos" and index not in source.eos_token_ids
    ]
    differences += [
        f"{TOKENIZER_PREFIX}eos_token_id, eot and eom do not name {index}, where the source stops"
        for index in kept_eos_ids(source)[1:]
        if index not in named.values()
    ]
    adding = {f"{TOKENIZER_PREFIX}{key}": False for key in TOKEN_ADDING}
    return differences + entry_differences("", {**adding, **metadata}, adding)


def _sampling_differences(metadata: Mapping[str, Any], source: Checkpoint) -> list[str]:
    """Compare the defaults of llama.cpp's samplers with the source's settings.

    Numbers are float32 in the file. The temperature is 0 where the source says that it does not
    sample, and 1 where it samples without naming one.
    """
    sampling = source.generation.sampling
    expected: dict[str, Any] = {
        key: sampling[name]
        for name, key in (("temperature", "temp"), ("top_k", "top_k"), ("top_p", "top_p"),
                          ("min_p", "min_p"), ("repetition_penalty", "penalty_repeat"))
        if name in sampling
    }  # fmt: skip
    if sampling.get("do_sample") is not None:
        expected["temp"] = sampling.get("temperature", 1.0) if sampling["do_sample"] else 0.0
    if expected.get("penalty_repeat", 1.0) != 1.0:
        expected["penalty_last_n"] = -1  # transformers looks at the whole text
    prefixed = {
        f"{SAMPLING_PREFIX}{key}": float(np.float32(value)) if "_k" not in key else value
        for key, value in expected.items()
        if abs(value) <= float(np.finfo(np.float32).max)  # others have no place
    }
    suppressed = _numbers(metadata, SUPPRESSED)
    size = source.tokenizer.size
    actual = sorted(token for token in suppressed if token < size)
    expected_ids = sorted({token for token in sampling.get("suppress_tokens", []) if token < size})
    differences = entry_differences("", metadata, prefixed)
    differences += [
        f"{SUPPRESSED} has {index}, where the source stops"
        for index in kept_eos_ids(source)
        if index in suppressed and index not in expected_ids
    ]
    if actual != expected_ids:
        differences.append(
            f"{SUPPRESSED} has {len(actual)} ids that are tokens, not {len(expected_ids)}"
        )
    return differences + [
        f"{key} is there, and the source says nothing of it"
        for key in metadata
        if key.startswith(SAMPLING_PREFIX) and key not in prefixed
    ]


def _template_differences(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> list[str]:
    """Compare the chat templates; those whose names cannot be a part of a key are left out."""
    expected: dict[str, Any] = {
        CHAT_TEMPLATE if name == DEFAULT else f"{CHAT_TEMPLATE}.{name}": template
        for name, template in tokenizer.chat_templates.items()
        if template and TEMPLATE_NAME.fullmatch(name)
    }
    names = [key.removeprefix(f"{CHAT_TEMPLATE}.") for key in expected if key != CHAT_TEMPLATE]
    if names:
        expected[CHAT_TEMPLATES] = sorted(names)
    differences = entry_differences("", metadata, expected)
    return differences + [
        f"{key} is there, and the source has no such template"
        for key in metadata
        if key.startswith(CHAT_TEMPLATE) and key not in expected
    ]


def _vocabulary_differences(
    metadata: Mapping[str, Any], tokenizer: Tokenizer, rows: int
) -> list[str]:
    tokens, types = _tokens(tokenizer, rows)
    merges = [f"{left} {right}" for left, right in tokenizer.merges]
    differences = entry_differences(
        "", metadata, {f"{TOKENIZER_PREFIX}model": "gpt2", f"{TOKENIZER_PREFIX}pre": PRE_TOKENIZER}
    )
    lists = {key: metadata.get(f"{TOKENIZER_PREFIX}{key}", ABSENT) for key in ("tokens", "merges")}
    differences += entry_differences("", lists, {"tokens": tokens, "merges": merges})
    stored_types = _numbers(metadata, f"{TOKENIZER_PREFIX}token_type")
    return differences + entry_differences("", {"token_type": stored_types}, {"token_type": types})


def _numbers(metadata: Mapping[str, Any], key: str) -> list[int]:
    """Return a list of whole numbers, empty if it is absent or of another type."""
    value = metadata.get(key)
    is_list = isinstance(value, list) and all(isinstance(number, int) for number in value)
    return value if is_list else []  # type: ignore[return-value]


def _tokens(tokenizer: Tokenizer, rows: int) -> tuple[list[str], list[int]]:
    """Return the token and the type of each embedding row; rows without a token are unused."""
    tokens = [f"[PAD{index}]" for index in range(rows)]
    types = [int(TokenType.UNUSED)] * rows
    for token, index in tokenizer.vocabulary.items():
        tokens[index], types[index] = token, int(TokenType.NORMAL)
    for added in tokenizer.added:
        kind = TokenType.CONTROL if added.special else TokenType.USER_DEFINED
        tokens[added.id], types[added.id] = added.content, int(kind)
    return tokens, types


GGUF_KEYS = frozenset(
    (
        *(f"{ARCHITECTURE}.{key}" for key in (
            "context_length", "embedding_length", "feed_forward_length", "block_count",
            "attention.head_count", "attention.head_count_kv", "attention.layer_norm_epsilon",
            "rope.dimension_count", "rope.freq_base",
        )),
        *(f"tokenizer.ggml.{key}" for key in (
            "model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id",
            "eot_token_id", "eom_token_id", "unknown_token_id", "padding_token_id",
            "seperator_token_id", "mask_token_id", "add_bos_token", "add_space_prefix",
        )),
        SUPPRESSED, ADJUSTED, TYPE_KEY, CHAT_TEMPLATE, CHAT_TEMPLATES,
    )
)  # fmt: skip
"""The keys that are let through, beside SHOWN; llama.cpp obeys others or aborts on them."""

SHOWN = ("general.", "quantize.")
"""Prefixes of keys that llama.cpp only shows. In the second llama-quantize names its imatrix."""

NO_WEIGHTS = ("I8", "I16", "I32", "I64", "F64")
"""Types that ggml knows, and has no multiplication for."""


def admit_gguf(path: Path) -> None:
    """Check a file for llama.cpp: a whole CodeGen, keys and tensors as the architecture has them.

    Raises InputError.
    """
    header = read_header(path)
    refuse_split(path, header)
    shapes = {t.name: Zeros(t.shape, FLOAT32) for t in header.tensors}
    GGUF.decoder(reader.geometry(path, header), shapes, str(path))
    tokenizer = reader.tokenizer(path, header)
    for key in header.metadata:
        named_template = key.startswith(f"{CHAT_TEMPLATE}.")
        if key not in GGUF_KEYS and not named_template and not key.startswith(SHOWN):
            raise InputError(f"{path}: metadata {key!r} is not CodeGen's; llama.cpp may obey it")
    for tensor in header.tensors:
        if len(tensor.shape) == 1 and tensor.type != "F32":
            raise InputError(
                f"{path}: tensor {tensor.name} is {tensor.type}; llama.cpp needs vectors as F32"
            )
        if tensor.type in NO_WEIGHTS:
            raise InputError(
                f"{path}: tensor {tensor.name} is {tensor.type}, not a type of weights"
            )
    _check_tokens(path, header)
    if any(len(text) > MAX_CHARACTERS for text in tokenizer.chat_templates.values()):
        raise InputError(f"{path}: a chat template has more than {MAX_CHARACTERS:,} characters")


def _check_tokens(path: Path, header: GgufHeader) -> None:
    """Check arrays that llama.cpp reads without a look at their types."""
    tokens = header.metadata["tokenizer.ggml.tokens"]
    if len(set(tokens)) != len(tokens):
        raise InputError(f"{path}: tokenizer.ggml.tokens has a token twice")
    if header.metadata["tokenizer.ggml.token_type"].dtype != np.dtype("<i4"):
        raise InputError(f"{path}: tokenizer.ggml.token_type is not of type int32")
    suppressed = header.metadata.get(SUPPRESSED, np.empty(0, np.int32))
    if not isinstance(suppressed, np.ndarray) or suppressed.dtype != np.dtype("<i4"):
        raise InputError(f"{path}: {SUPPRESSED} is not an array of int32")
    if suppressed.size and not 0 <= suppressed.min() <= suppressed.max() < len(tokens):
        raise InputError(f"{path}: {SUPPRESSED} names an id that no token has")
