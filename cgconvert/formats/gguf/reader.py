"""Read a GGUF file that cgconvert wrote: as a source, or as the model that llama.cpp computes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.encoding import FloatEncoding
from cgconvert.codecs.ggml import ENCODINGS
from cgconvert.codecs.quantized_tensor import QuantizedTensor
from cgconvert.errors import InputError
from cgconvert.formats.gguf.generation import (
    EXTRA_ROLES,
    read_chat_templates,
    read_generation_config,
)
from cgconvert.formats.gguf.header import GgufHeader, TensorInfo
from cgconvert.formats.gguf.split import read_model_header
from cgconvert.formats.gguf.writer import ARCHITECTURE, PRE_TOKENIZER, SUPPRESSED
from cgconvert.model.architectures import explain_gguf
from cgconvert.model.decoder import Checkpoint, Decoder, Geometry
from cgconvert.model.dtype import UINT8
from cgconvert.model.generation_config import GenerationConfig
from cgconvert.model.tensor import LazyTensor, StoredTensor
from cgconvert.model.tensor_names import GGUF
from cgconvert.model.tokenizer import AddedToken, Tokenizer

__all__ = [
    "check_architecture",
    "decoder",
    "generation",
    "geometry",
    "read",
    "tensors",
    "tokenizer",
]

_TOKENIZER_PREFIX = "tokenizer.ggml."
_PACKED = re.compile(r"(blk\.\d+)\.attn_qkv\.(weight|bias)")

ROLES: Mapping[str, str] = {
    "eos_token": gguf.Keys.Tokenizer.EOS_ID,
    "bos_token": gguf.Keys.Tokenizer.BOS_ID,
    "unk_token": gguf.Keys.Tokenizer.UNK_ID,
    "pad_token": gguf.Keys.Tokenizer.PAD_ID,
    **EXTRA_ROLES,
}
"""The keys of the ids of tokens with a role, by the names in a tokenizer's configuration."""


def read(path: Path, name: str) -> Checkpoint:
    """Read an unquantized file as a source.

    If the file has a general.name that can be a file name, the checkpoint gets it, else `name`.
    Raises InputError if the file is broken, quantized or not a CodeGen.
    """
    header, files = read_model_header(path)
    check_architecture(path, header)
    own_name = header.metadata.get("general.name")
    plain = {kind for kind, encoding in ENCODINGS.items() if isinstance(encoding, FloatEncoding)}
    quantized = sorted({tensor.type for tensor in header.tensors} - plain)
    if quantized:
        raise InputError(
            f"{path}: is quantized ({', '.join(quantized)}): convert from its source instead"
        )
    own_tokenizer = tokenizer(path, header)
    return Checkpoint(
        name=own_name
        if isinstance(own_name, str) and re.fullmatch(r"\w[\w.-]*", own_name)
        else name,
        path=path,
        layout="gguf",
        config={k: v for k, v in header.metadata.items() if not k.startswith(_TOKENIZER_PREFIX)},
        decoder=decoder(path, header),
        tokenizer=own_tokenizer,
        files=files,
        generation=generation(path, header, own_tokenizer),
    )


def generation(path: Path, header: GgufHeader, own_tokenizer: Tokenizer) -> GenerationConfig:
    """Read what the metadata say of generation. Raises InputError if they are broken."""
    suppressed = header.metadata.get(SUPPRESSED)
    never = suppressed.tolist() if isinstance(suppressed, np.ndarray) else []
    return read_generation_config(path, header.metadata, own_tokenizer, never)


def decoder(path: Path, header: GgufHeader | None = None) -> Decoder:
    """Read the model; quantized weights are decoded to float32 when they are read.

    Raises InputError if the file is broken, not a CodeGen, or has a type without a codec.
    """
    header = header or read_model_header(path)[0]
    return GGUF.decoder(geometry(path, header), tensors(path, header), str(path))


def tensors(path: Path, header: GgufHeader) -> dict[str, LazyTensor]:
    """Return every tensor by name, lazily; quantized ones are decoded when they are read.

    A file of another program may have q, k and v in one tensor, attn_qkv, which is cut here.
    """
    by_name: dict[str, LazyTensor] = {}
    for info in header.tensors:
        tensor, packed = _tensor(path, info), _PACKED.fullmatch(info.name)
        if packed is None or info.shape[0] % 3:
            by_name[info.name] = tensor
            continue
        for part, rows in zip("qkv", np.array_split(np.arange(info.shape[0]), 3), strict=True):
            by_name[f"{packed[1]}.attn_{part}.{packed[2]}"] = tensor.rows(rows)
    return by_name


def _tensor(path: Path, tensor: TensorInfo) -> LazyTensor:
    """Return one tensor, lazily. Raises InputError if its type has no codec."""
    encoding = ENCODINGS.get(tensor.type)
    if isinstance(encoding, FloatEncoding):
        return StoredTensor(tensor.path, tensor.offset, tensor.shape, encoding.dtype, tensor.name)
    if isinstance(encoding, BlockCodec) and len(tensor.shape) == 2:
        packed_shape = (tensor.shape[0], encoding.row_bytes(tensor.shape))
        stored = StoredTensor(tensor.path, tensor.offset, packed_shape, UINT8, tensor.name)
        return QuantizedTensor((stored,), tensor.shape, encoding)
    raise InputError(
        f"{path}: tensor {tensor.name} is {tensor.type} {list(tensor.shape)}, "
        f"which is not read here; types are {', '.join(ENCODINGS)}"
    )


def check_architecture(path: Path, header: GgufHeader) -> None:
    """Raise InputError if a file holds another model than CodeGen, and say which."""
    architecture = header.metadata.get("general.architecture")
    if architecture == ARCHITECTURE:
        return
    if isinstance(architecture, str) and architecture:
        raise InputError(f"{path}: {explain_gguf(architecture)}")
    raise InputError(
        f"{path}: its architecture is {architecture!r}; CodeGen's in GGUF is {ARCHITECTURE!r}"
    )


def geometry(path: Path, header: GgufHeader) -> Geometry:
    """Read sizes and constants from the metadata, the number of rows from the embedding's tensor.

    Raises InputError if one is missing or wrong.
    """
    metadata = header.metadata
    check_architecture(path, header)
    embedding = GGUF.model["wte"]
    rows = next((tensor.shape[0] for tensor in header.tensors if tensor.name == embedding), 0)
    if not rows:
        raise InputError(f"{path}: {embedding} is missing")

    def integer(key: str) -> int:
        """Read a positive integer under a key of the architecture."""
        return _integer(path, metadata, f"{ARCHITECTURE}.{key}")

    layers, heads = integer("block_count"), integer("attention.head_count")
    if layers * len(GGUF.layer) > len(
        header.tensors
    ):  # so that no loop runs over a false number of layers
        raise InputError(f"{path}: {layers} layers do not fit its {len(header.tensors)} tensors")
    if integer("attention.head_count_kv") != heads:
        raise InputError(f"{path}: head_count_kv differs from head_count; CodeGen's are the same")
    sizes = {
        "n_layer": layers,
        "n_embd": integer("embedding_length"),
        "n_head": heads,
        "rotary_dim": integer("rope.dimension_count"),
        "n_positions": integer("context_length"),
        "vocab_size": rows,
        "n_inner": integer("feed_forward_length"),
        "mp_num": 0,
    }
    epsilon = _number(path, metadata, "attention.layer_norm_epsilon")
    base = _number(path, metadata, "rope.freq_base")
    try:
        return Geometry(**sizes, layer_norm_epsilon=epsilon, rotary_base=base)
    except InputError as error:  # a Geometry does not know the file
        raise InputError(f"{path}: {error}") from None


def tokenizer(path: Path, header: GgufHeader) -> Tokenizer:
    """Read the tokenizer in the metadata, without the padding tokens for unused embedding rows.

    Raises InputError if it is incomplete or not CodeGen's.
    """
    metadata = header.metadata
    for key, expected in (("model", "gpt2"), ("pre", PRE_TOKENIZER)):
        actual = metadata.get(_TOKENIZER_PREFIX + key)
        if actual != expected:
            raise InputError(
                f"{path}: {_TOKENIZER_PREFIX}{key} is {actual!r}; CodeGen's is {expected!r}"
            )
    tokens, merges = _strings(path, metadata, "tokens"), _strings(path, metadata, "merges")
    types = metadata.get(_TOKENIZER_PREFIX + "token_type")
    if not isinstance(types, np.ndarray) or len(types) != len(tokens):
        raise InputError(f"{path}: {_TOKENIZER_PREFIX}token_type does not give each token a type")
    roles = _roles(path, metadata, tokens)
    vocabulary, added = {}, []
    for index, (token, token_type) in enumerate(zip(tokens, types.tolist(), strict=True)):
        if token_type == gguf.TokenType.NORMAL:
            vocabulary[token] = index
        elif token_type in (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED):
            added.append(AddedToken(index, token, token_type == gguf.TokenType.CONTROL))
        elif token_type != gguf.TokenType.UNUSED:
            raise InputError(
                f"{path}: token {index} has type {token_type}, which CodeGen has none of"
            )
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    eos_token = roles.pop("eos_token")
    known = {eos_token, *roles.values()}
    return Tokenizer.from_parts(
        vocabulary,
        pairs,
        added,
        eos_token,
        roles,
        chat_templates=read_chat_templates(path, metadata),
        extra_special_tokens=[t.content for t in added if t.special and t.content not in known],
        where=str(path),
    )


def _roles(path: Path, metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, str]:
    """Return the token of each role that the metadata name, the eos token among them.

    Raises InputError for an id that no token has.
    """
    roles = {}
    for role, key in ROLES.items():
        if key not in metadata and role != "eos_token":
            continue
        index = _integer(path, metadata, key, least=0)
        if index >= len(tokens):
            raise InputError(f"{path}: {key} is {index} of {len(tokens)} tokens")
        roles[role] = tokens[index]
    return roles


def _strings(path: Path, metadata: Mapping[str, Any], key: str) -> list[str]:
    """Return a list of strings of the tokenizer. Raises InputError."""
    value = metadata.get(_TOKENIZER_PREFIX + key)
    if not isinstance(value, list):
        raise InputError(f"{path}: {_TOKENIZER_PREFIX}{key} is not a list of strings")
    return value


def _integer(path: Path, metadata: Mapping[str, Any], key: str, least: int = 1) -> int:
    """Return an integer of at least `least`. Raises InputError."""
    value = metadata.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 31:
        raise InputError(f"{path}: {key} is {value!r}, not a whole number from {least} up")
    return value


def _number(path: Path, metadata: Mapping[str, Any], key: str) -> float:
    """Return a positive float32 as its shortest decimal: 1e-05, not 9.999999747378752e-06."""
    value = metadata.get(f"{ARCHITECTURE}.{key}")
    if not isinstance(value, float) or not 0 < value < 1e9:
        raise InputError(f"{path}: {ARCHITECTURE}.{key} is {value!r}, not a positive number")
    return float(str(np.float32(value)))
