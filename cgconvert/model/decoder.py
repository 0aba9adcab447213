"""A CodeGen model as every reader returns it and every writer takes it.

The rows of q and k are in CodeGen's own rotary order, interleaved pairs. `Decoder.half_split` gives
the model with them in half-split order, which Phi, llama.cpp's phi2 and most engines use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cgconvert.model.dtype import FLOAT32, DType
from cgconvert.model.generation_config import GenerationConfig
from cgconvert.model.geometry import Geometry
from cgconvert.model.tensor import LazyTensor, SelectedRows, StackedTensor, StoredTensor
from cgconvert.model.tokenizer import Tokenizer

__all__ = [
    "WARNING",
    "Checkpoint",
    "Decoder",
    "Geometry",
    "Layer",
    "half_split_row_indices",
    "interleaved_row_indices",
    "packed_qkv_row_indices",
    "qkv_row_indices",
]

WARNING = "warning: "
"""The beginning of a note on something that is probably wrong."""

# Orders of rows. Each function returns an array of row indices: row r of the result is row
# indices[r] of the source.


def qkv_row_indices(n_embd: int, mp_num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The indices of the rows of q, of k and of v in a packed qkv_proj, n_embd each.

    The packed matrix has `mp_num` groups of 3 * n_embd / mp_num rows. Each group has rows of q,
    then of v, then of k, in equal number (transformers, modeling_codegen.py:
    CodeGenAttention.forward).
    """
    indices = np.arange(3 * n_embd).reshape(mp_num, 3, n_embd // mp_num)
    query, value, key = (indices[:, part].reshape(-1) for part in range(3))
    return query, key, value


def packed_qkv_row_indices(n_embd: int, mp_num: int) -> np.ndarray:
    """For each row of a packed qkv_proj, its index in the stacked matrix [q; k; v].

    This is the inverse permutation of `qkv_row_indices`.
    """
    return np.argsort(np.concatenate(qkv_row_indices(n_embd, mp_num)))


def half_split_row_indices(n_head: int, head_dim: int, rotary_dim: int) -> np.ndarray:
    """For each row of q or k in half-split rotary order, its index in interleaved order.

    In each head, the interleaved pairs of rows (2i, 2i + 1) become the pairs (i, i + rotary_dim/2).
    Rows from `rotary_dim` on, which are not rotated, keep their places.
    """
    head = np.arange(head_dim)
    head[:rotary_dim] = np.concatenate([np.arange(0, rotary_dim, 2), np.arange(1, rotary_dim, 2)])
    return (np.arange(n_head)[:, None] * head_dim + head).reshape(-1)


def interleaved_row_indices(n_head: int, head_dim: int, rotary_dim: int) -> np.ndarray:
    """For each row of q or k in interleaved rotary order, its index in half-split order.

    This is the inverse permutation of `half_split_row_indices`.
    """
    return np.argsort(half_split_row_indices(n_head, head_dim, rotary_dim))


@dataclass(frozen=True)
class Layer:
    """The weights of one layer, x + attention(norm(x)) + mlp(norm(x)).

    Matrices are [out, in]. Vectors have n_embd elements, `fc_in_bias` n_inner.
    """

    ln_weight: LazyTensor
    ln_bias: LazyTensor
    q: LazyTensor
    k: LazyTensor
    v: LazyTensor
    o: LazyTensor
    fc_in: LazyTensor
    fc_in_bias: LazyTensor
    fc_out: LazyTensor
    fc_out_bias: LazyTensor

    @property
    def qkv(self) -> LazyTensor:
        """The matrix [q; k; v], [3 * n_embd, n_embd]."""
        return _stack(self.q, self.k, self.v)

    def packed(self, mp_num: int) -> LazyTensor:
        """CodeGen's qkv_proj, [3 * n_embd, n_embd], packed in `mp_num` groups."""
        return self.qkv.rows(packed_qkv_row_indices(self.q.shape[0], mp_num))


@dataclass(frozen=True)
class Decoder:
    """The weights of a whole model, as lazy tensors.

    `wte` (the embedding) and `head` are [vocab_size, n_embd], `head_bias` has vocab_size elements,
    and the last layer norm's vectors n_embd.
    """

    geometry: Geometry
    wte: LazyTensor
    layers: tuple[Layer, ...]
    ln_f_weight: LazyTensor
    ln_f_bias: LazyTensor
    head: LazyTensor
    head_bias: LazyTensor

    def half_split(self) -> Decoder:
        """The model with the rows of q and k in half-split rotary order."""
        g = self.geometry
        indices = half_split_row_indices(g.n_head, g.head_dim, g.rotary_dim)
        return replace(
            self,
            layers=tuple(
                replace(layer, q=layer.q.rows(indices), k=layer.k.rows(indices))
                for layer in self.layers
            ),
        )

    def leaves(self) -> Iterator[StoredTensor]:
        """Yield every stored tensor from which the model is read; one may come several times."""
        for owner in (self, *self.layers):
            for value in vars(owner).values():
                if isinstance(value, LazyTensor):
                    yield from value.leaves()

    def with_groups(self, mp_num: int) -> Decoder:
        """The model with its packed qkv_proj taken for `mp_num` groups.

        The packed matrices stay as they are; only which of their rows are q, k and v changes.
        """
        geometry = replace(self.geometry, mp_num=mp_num)
        row_indices = qkv_row_indices(geometry.n_embd, mp_num)
        layers = []
        for layer in self.layers:
            packed = layer.packed(self.geometry.mp_num)
            q, k, v = (packed.rows(indices) for indices in row_indices)
            layers.append(replace(layer, q=q, k=k, v=v))
        return replace(self, geometry=geometry, layers=tuple(layers))

    @property
    def dtype(self) -> DType:
        """The type in which the source stores its matrices; float32 if they have several."""
        dtypes = {self.wte.stored_dtype, self.head.stored_dtype}
        for layer in self.layers:
            matrices = (layer.q, layer.k, layer.v, layer.o, layer.fc_in, layer.fc_out)
            dtypes |= {matrix.stored_dtype for matrix in matrices}
        return dtypes.pop() if len(dtypes) == 1 else FLOAT32


def _stack(*tensors: LazyTensor) -> LazyTensor:
    """Stack tensors along their rows.

    If all are rows of one tensor, so is the result. Then it is read from that tensor in long runs
    of adjacent rows: packing q, k and v again for the same number of groups is one read. If their
    types differ, because an adapter was merged into one of them, all are float32.
    """
    selections = [tensor for tensor in tensors if isinstance(tensor, SelectedRows)]
    if len(selections) == len(tensors) and len({id(rows.source) for rows in selections}) == 1:
        return selections[0].source.rows(np.concatenate([rows.indices for rows in selections]))
    if len({tensor.dtype for tensor in tensors}) > 1:
        tensors = tuple(tensor.to(FLOAT32) for tensor in tensors)
    return StackedTensor(tensors)


@dataclass(frozen=True)
class Checkpoint:
    """A model on the disk. Only headers, configuration and tokenizer have been read.

    Attributes:
        name: The name of the model, after which outputs are named.
        path: The folder or file.
        layout: The layout of the files: torch, safetensors, jaxformer, phi, gguf or onnx.
        config: The contents of the configuration, as read.
        decoder: The model's tensors.
        tokenizer: The model's tokenizer.
        files: All files whose SHA-256 the manifest records, weights first.
        origin: Where it came from (Hub revision, archive, training step).
        generation: What it says of generation.
        notes: What reading did that the user should know, a line each; see also WARNING.
        original_name: Its name before the user gave it another; "" if it was given none.
    """

    name: str
    path: Path
    layout: str
    config: Mapping[str, Any]
    decoder: Decoder
    tokenizer: Tokenizer
    files: tuple[Path, ...]
    origin: Mapping[str, Any] = field(default_factory=dict)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    notes: tuple[str, ...] = ()
    original_name: str = ""

    @property
    def known_as(self) -> str:
        """The name that tells which published model this is: the one before the user's own."""
        return self.original_name or self.name

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All ids at which generation stops, each once: the tokenizer's own eos token is first."""
        own = self.tokenizer.eos_token_id
        return tuple(dict.fromkeys((own, *self.generation.eos_token_ids)))

    @property
    def geometry(self) -> Geometry:
        return self.decoder.geometry
