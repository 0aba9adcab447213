"""A CodeGen model as every reader returns it and every writer takes it.

Rows of q and k are kept in CodeGen's own rotary order (interleaved pairs); `half_split` gives them
in the order that Phi, llama.cpp's phi2 and most engines want.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from cgconvert.errors import InputError
from cgconvert.model.tensor import LazyTensor, Rows, Stacked

__all__ = [
    "Decoder",
    "Geometry",
    "Layer",
    "half_split_rows",
    "interleaved_rows",
    "packed_rows",
    "split_rows",
]


# At least ten times what CodeGen has. A file may name any size, and tables are made from these.
_LARGEST = {
    "n_layer": 1 << 10, "n_embd": 1 << 16, "n_head": 1 << 10, "n_inner": 1 << 18,
    "rotary_dim": 1 << 10, "n_positions": 1 << 16, "vocab_size": 1 << 22,
}  # fmt: skip


@dataclass(frozen=True)
class Geometry:
    """Sizes of a model (all in elements) and the constants of its mathematics.

    `mp_num` is the number of groups in a packed qkv_proj, 0 where q, k and v are stored apart.
    """

    n_layer: int
    n_embd: int
    n_head: int
    rotary_dim: int
    n_positions: int
    vocab_size: int
    mp_num: int
    n_inner: int = 0
    layer_norm_epsilon: float = 1e-5
    rotary_base: float = 10000.0

    def __post_init__(self) -> None:
        if not self.n_inner:
            object.__setattr__(self, "n_inner", 4 * self.n_embd)
        for name, most in _LARGEST.items():
            value = getattr(self, name)
            if not 1 <= value <= most:
                raise InputError(f"config: {name} is {value}; it must be from 1 to {most}")
        if self.mp_num < 0:
            raise InputError(f"config: {self.mp_num} groups in qkv_proj; give 1 or more")
        if self.n_positions * self.rotary_dim > 1 << 24:
            raise InputError(
                f"config: n_positions {self.n_positions} and rotary_dim {self.rotary_dim} "
                "make too large a table"
            )
        if self.n_embd % self.n_head:
            raise InputError(
                f"config: n_embd {self.n_embd} is not a multiple of n_head {self.n_head}"
            )
        if self.mp_num and self.n_head % self.mp_num:
            raise InputError(
                f"config: n_head {self.n_head} does not divide into {self.mp_num} groups; "
                "give the right number with `mp_num`"
            )
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise InputError(
                f"config: rotary_dim {self.rotary_dim} must be even and at most the head size "
                f"{self.head_dim}"
            )

    @property
    def head_dim(self) -> int:
        """Elements of one head of q, k or v."""
        return self.n_embd // self.n_head

    @property
    def parameters(self) -> int:
        """Number of weights of CodeGen's own, without the zero biases of other formats."""
        layer = self.n_embd * (4 * self.n_embd + 2 * self.n_inner + 3) + self.n_inner
        ends = self.vocab_size * (2 * self.n_embd + 1) + 2 * self.n_embd
        return self.n_layer * layer + ends

    def as_dict(self) -> dict[str, Any]:
        """All sizes by name, for JSON."""
        return asdict(self) | {"head_dim": self.head_dim}


# Orders of rows. Each function returns an index array: row r of the result is row index[r] of the
# source.


def split_rows(n_embd: int, mp_num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows of q, k and v (n_embd each) in a packed qkv_proj.

    The packed matrix is `mp_num` groups of q, v, k in that order, n_embd / mp_num rows each
    (transformers, modeling_codegen.py: CodeGenAttention.forward).
    """
    index = np.arange(3 * n_embd).reshape(mp_num, 3, n_embd // mp_num)
    query, value, key = (index[:, part].reshape(-1) for part in range(3))
    return query, key, value


def packed_rows(n_embd: int, mp_num: int) -> np.ndarray:
    """The inverse of `split_rows`: the rows of a packed qkv_proj in q, k and v stacked."""
    return np.argsort(np.concatenate(split_rows(n_embd, mp_num)))


def half_split_rows(n_head: int, head_dim: int, rotary_dim: int) -> np.ndarray:
    """The order that turns interleaved rotary pairs (2i, 2i+1) of each head into halves
    (i, i + rotary_dim/2)."""
    head = np.arange(head_dim)
    head[:rotary_dim] = np.concatenate([np.arange(0, rotary_dim, 2), np.arange(1, rotary_dim, 2)])
    return (np.arange(n_head)[:, None] * head_dim + head).reshape(-1)


def interleaved_rows(n_head: int, head_dim: int, rotary_dim: int) -> np.ndarray:
    """The inverse of `half_split_rows`."""
    return np.argsort(half_split_rows(n_head, head_dim, rotary_dim))


@dataclass(frozen=True)
class Layer:
    """One layer: x + attn(ln(x)) + mlp(ln(x)). Matrices are [out, in], vectors [out]."""

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
        """q, k and v stacked, [3 n_embd, n_embd]."""
        return _stack_same(self.q, self.k, self.v)

    def packed(self, mp_num: int) -> LazyTensor:
        """qkv_proj as CodeGen stores it, in `mp_num` groups."""
        return self.qkv.rows(packed_rows(self.q.shape[0], mp_num))


@dataclass(frozen=True)
class Decoder:
    """A whole model of lazy tensors. Matrices are [out, in], vectors [out]."""

    geometry: Geometry
    wte: LazyTensor
    layers: tuple[Layer, ...]
    ln_f_weight: LazyTensor
    ln_f_bias: LazyTensor
    head: LazyTensor
    head_bias: LazyTensor

    def half_split(self) -> Decoder:
        """The same model with q and k in half-split rotary order."""
        g = self.geometry
        index = half_split_rows(g.n_head, g.head_dim, g.rotary_dim)
        return replace(
            self,
            layers=tuple(
                replace(layer, q=layer.q.rows(index), k=layer.k.rows(index))
                for layer in self.layers
            ),
        )

    @property
    def dtype(self) -> torch.dtype:
        """The type most of the source's numbers are stored in."""
        return self.head.stored_dtype


def _stack_same(*tensors: LazyTensor) -> LazyTensor:
    """The tensors one below the other. Rows of one tensor stay rows of it, so that it is read once,
    in runs."""
    if all(isinstance(t, Rows) for t in tensors):
        sources = {id(t.source) for t in tensors if isinstance(t, Rows)}
        if len(sources) == 1:
            first = tensors[0]
            assert isinstance(first, Rows)
            index = np.concatenate([t.index for t in tensors if isinstance(t, Rows)])
            return first.source.rows(index)
    return Stacked(tensors)
