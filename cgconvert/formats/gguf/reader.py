"""Read a GGUF file that cgconvert wrote: as a source, or as the weights that llama.cpp sees."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.encoding import FloatEncoding
from cgconvert.codecs.ggml import ENCODINGS
from cgconvert.codecs.quantized_tensor import QuantizedTensor
from cgconvert.errors import InputError
from cgconvert.formats.gguf.header import GgufHeader, TensorInfo, read_header
from cgconvert.formats.gguf.writer import ARCHITECTURE, PRE_TOKENIZER
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.model.decoder import Decoder, Geometry
from cgconvert.model.tensor import LazyTensor, StoredTensor
from cgconvert.model.tensor_names import GGUF
from cgconvert.model.tokenizer import AddedToken, Tokenizer

__all__ = ["decoder", "geometry", "read", "tensors", "tokenizer"]

_TOKENIZER = "tokenizer.ggml."


def read(path: Path, name: str) -> Checkpoint:
    """An unquantized file as a source; its own general.name, where it has one, comes before `name`.

    Raises InputError where the file is broken, quantized or not a CodeGen.
    """
    header = read_header(path)
    own = header.metadata.get("general.name")
    plain = {kind for kind, encoding in ENCODINGS.items() if isinstance(encoding, FloatEncoding)}
    quantized = sorted({tensor.type for tensor in header.tensors} - plain)
    if quantized:
        raise InputError(
            f"{path}: is quantized ({', '.join(quantized)}): convert from its source instead"
        )
    return Checkpoint(
        name=own if isinstance(own, str) and re.fullmatch(r"\w[\w.-]*", own) else name,
        path=path,
        layout="gguf",
        config={k: v for k, v in header.metadata.items() if not k.startswith(_TOKENIZER)},
        decoder=decoder(path, header),
        tokenizer=tokenizer(path, header),
        files=(path,),
    )


def decoder(path: Path, header: GgufHeader | None = None) -> Decoder:
    """The model whose weights are those stored, quantized ones decoded to float32 as they are read.

    Raises InputError where the file is broken, not a CodeGen, or of a type without a codec here.
    """
    header = header or read_header(path)
    return GGUF.decoder(geometry(path, header), tensors(path, header), str(path))


def tensors(path: Path, header: GgufHeader) -> dict[str, LazyTensor]:
    """Every tensor of the file by its name, decoded as it is read."""
    return {tensor.name: _tensor(path, tensor) for tensor in header.tensors}


def _tensor(path: Path, tensor: TensorInfo) -> LazyTensor:
    encoding = ENCODINGS.get(tensor.type)
    if isinstance(encoding, FloatEncoding):
        return StoredTensor(path, tensor.offset, tensor.shape, encoding.dtype, tensor.name)
    if isinstance(encoding, BlockCodec) and len(tensor.shape) == 2:
        coded = (tensor.shape[0], encoding.row_bytes(tensor.shape))
        stored = StoredTensor(path, tensor.offset, coded, torch.uint8, tensor.name)
        return QuantizedTensor((stored,), tensor.shape, encoding)
    raise InputError(
        f"{path}: tensor {tensor.name} is {tensor.type} {list(tensor.shape)}, "
        f"which is not read here; types are {', '.join(ENCODINGS)}"
    )


def geometry(path: Path, header: GgufHeader) -> Geometry:
    """Sizes and constants from the metadata; the rows of the vocabulary from its tensor."""
    metadata = header.metadata
    architecture = metadata.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise InputError(
            f"{path}: its architecture is {architecture!r}; CodeGen's in GGUF is {ARCHITECTURE!r}"
        )
    table = GGUF.model["wte"]
    rows = next((tensor.shape[0] for tensor in header.tensors if tensor.name == table), 0)
    if not rows:
        raise InputError(f"{path}: {table} is missing")

    def integer(key: str) -> int:
        return _integer(path, metadata, f"{ARCHITECTURE}.{key}")

    layers, heads = integer("block_count"), integer("attention.head_count")
    if layers * len(GGUF.layer) > len(header.tensors):  # before anything counts up to it
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
    except InputError as error:  # it does not know the file
        raise InputError(f"{path}: {error}") from None


def tokenizer(path: Path, header: GgufHeader) -> Tokenizer:
    """The tokenizer in the metadata, without the entries that pad it to the embedding's rows.

    Raises InputError where it is incomplete or of another kind than CodeGen's.
    """
    metadata = header.metadata
    for key, expected in (("model", "gpt2"), ("pre", PRE_TOKENIZER)):
        actual = metadata.get(_TOKENIZER + key)
        if actual != expected:
            raise InputError(f"{path}: {_TOKENIZER}{key} is {actual!r}; CodeGen's is {expected!r}")
    tokens, merges = _strings(path, metadata, "tokens"), _strings(path, metadata, "merges")
    types = metadata.get(_TOKENIZER + "token_type")
    if not isinstance(types, np.ndarray) or len(types) != len(tokens):
        raise InputError(f"{path}: {_TOKENIZER}token_type does not give each token a type")
    end = _integer(path, metadata, _TOKENIZER + "eos_token_id", least=0)
    if end >= len(tokens):
        raise InputError(f"{path}: {_TOKENIZER}eos_token_id is {end} of {len(tokens)} tokens")
    vocabulary, added = {}, []
    for index, (token, kind) in enumerate(zip(tokens, types.tolist(), strict=True)):
        if kind == gguf.TokenType.NORMAL:
            vocabulary[token] = index
        elif kind in (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED):
            added.append(AddedToken(index, token, kind == gguf.TokenType.CONTROL))
        elif kind != gguf.TokenType.UNUSED:
            raise InputError(f"{path}: token {index} has type {kind}, which CodeGen has none of")
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    return Tokenizer.from_parts(vocabulary, pairs, added, tokens[end], where=str(path))


def _strings(path: Path, metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(_TOKENIZER + key)
    if not isinstance(value, list):
        raise InputError(f"{path}: {_TOKENIZER}{key} is not a list of strings")
    return value


def _integer(path: Path, metadata: Mapping[str, Any], key: str, least: int = 1) -> int:
    value = metadata.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 31:
        raise InputError(f"{path}: {key} is {value!r}, not a whole number from {least} up")
    return value


def _number(path: Path, metadata: Mapping[str, Any], key: str) -> float:
    """A float32 as the shortest decimal that means it: 1e-05 rather than 9.999999747378752e-06."""
    value = metadata.get(f"{ARCHITECTURE}.{key}")
    if not isinstance(value, float) or not 0 < value < 1e9:
        raise InputError(f"{path}: {ARCHITECTURE}.{key} is {value!r}, not a positive number")
    return float(str(np.float32(value)))
