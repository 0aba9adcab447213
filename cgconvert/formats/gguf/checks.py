"""Compare a GGUF file with the source: tensors, geometry, vocabulary.

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
from cgconvert.formats.gguf.header import read_header
from cgconvert.formats.gguf.type_names import contradictions
from cgconvert.formats.gguf.writer import (
    ADJUSTED,
    ARCHITECTURE,
    IMATRIX,
    PRE_TOKENIZER,
    SUPPRESSED,
)
from cgconvert.model.chat_templates import DEFAULT
from cgconvert.model.decoder import Checkpoint, Decoder
from cgconvert.model.tensor_names import GGUF
from cgconvert.model.tokenizer import Tokenizer

__all__ = ["kept_eos_ids", "settings", "stored_artefact"]

TOKENIZER_PREFIX = "tokenizer.ggml."
END_ROLES = ("eos", "eot", "eom")
"""The roles of the tokens at which llama.cpp stops."""
GENERAL: Mapping[str, Any] = {"general.type": "model", "general.quantization_version": 2}
"""Values of keys that may be absent; programs refuse a model, or its types, if they have others."""
TOKEN_ADDING = ("add_bos_token", "add_eos_token", "add_space_prefix")


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
    general = {"general.architecture": ARCHITECTURE}
    general |= {key: value for key, value in GENERAL.items() if key in header.metadata}
    differences = value_differences(header.metadata, general | expected)
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
