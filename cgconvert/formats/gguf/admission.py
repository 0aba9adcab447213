"""Admit a GGUF file to llama.cpp: a whole CodeGen without keys that llama.cpp would obey."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cgconvert.errors import InputError
from cgconvert.formats.gguf import reader
from cgconvert.formats.gguf.generation import CHAT_TEMPLATE, CHAT_TEMPLATES
from cgconvert.formats.gguf.header import GgufHeader, read_header
from cgconvert.formats.gguf.split import refuse_split
from cgconvert.formats.gguf.type_names import TYPE_KEY
from cgconvert.formats.gguf.writer import ADJUSTED, ARCHITECTURE, SUPPRESSED
from cgconvert.io.admitted import AdmittedFiles, admitting
from cgconvert.model.chat_templates import MAX_CHARACTERS
from cgconvert.model.dtype import FLOAT32
from cgconvert.model.tensor import Zeros
from cgconvert.model.tensor_names import GGUF

__all__ = ["admit_gguf"]

NAME = "model.gguf"
"""What the file is called in the private folder."""

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


def admit_gguf(path: Path) -> AdmittedFiles:
    """Admit a file to llama.cpp, which aborts the process on some broken files.

    llama.cpp looks for further parts of a model by the name of the first, and the private folder
    has the one file alone.
    """
    with admitting(path, path.parent) as files:
        files.path = files.link(NAME, path)
        header = read_header(files.path)
        refuse_split(path, header)  # which names the parts, so it needs the file's own name
        _check_gguf(files.path, header)
    return files


def _check_gguf(path: Path, header: GgufHeader) -> None:
    """Check a file for llama.cpp: a whole CodeGen, keys and tensors as the architecture has them.

    Raises InputError.
    """
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
