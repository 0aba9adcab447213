"""The hyperparameters of a model, which its configuration contains."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cgconvert.errors import InputError

__all__ = ["MAX_SIZES", "Geometry"]

MAX_SIZES = {
    "n_layer": 1 << 10, "n_embd": 1 << 16, "n_head": 1 << 10, "n_inner": 1 << 18,
    "rotary_dim": 1 << 10, "n_positions": 1 << 16, "vocab_size": 1 << 22,
}  # fmt: skip
"""The largest sizes that are read, at least ten times CodeGen's. A file may declare any size, and
memory is allocated by these."""


@dataclass(frozen=True)
class Geometry:
    """The hyperparameters of a model; all sizes are numbers of elements.

    Attributes:
        n_layer: Number of layers.
        n_embd: Size of the hidden state.
        n_head: Number of attention heads.
        rotary_dim: Elements of each head that rotary position embedding rotates.
        n_positions: Context length in tokens.
        vocab_size: Rows of the embedding, padding rows included.
        mp_num: Number of groups in a packed qkv_proj; 0 if q, k and v are stored apart.
        n_inner: Size of the MLP's hidden layer, by default 4 * n_embd.
        layer_norm_epsilon: The epsilon that layer normalization adds to the variance.
        rotary_base: The base of the rotary angles' frequencies.
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
        for name, maximum in MAX_SIZES.items():
            value = getattr(self, name)
            if not 1 <= value <= maximum:
                raise InputError(f"config: {name} is {value}; it must be from 1 to {maximum}")
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
                'give the right number with `mp_num`, or `mp_num="auto"` to measure it'
            )
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise InputError(
                f"config: rotary_dim {self.rotary_dim} must be even and at most the head size "
                f"{self.head_dim}"
            )

    @property
    def head_dim(self) -> int:
        """Elements of one attention head."""
        return self.n_embd // self.n_head

    @property
    def parameters(self) -> int:
        """Number of weights, without the zero biases that other formats add."""
        layer = self.n_embd * (4 * self.n_embd + 2 * self.n_inner + 3) + self.n_inner
        ends = self.vocab_size * (2 * self.n_embd + 1) + 2 * self.n_embd
        return self.n_layer * layer + ends

    def as_dict(self) -> dict[str, Any]:
        """All attributes and `head_dim` by name, for JSON."""
        return asdict(self) | {"head_dim": self.head_dim}
