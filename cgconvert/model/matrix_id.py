"""The address of a matrix in a decoder: which layer, which part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from cgconvert.model.decoder import Decoder
from cgconvert.model.tensor import LazyTensor
from cgconvert.model.tensor_names import TensorNames

__all__ = ["LAYER_MATRICES", "MatrixId"]

LAYER_MATRICES = ("q", "k", "v", "o", "fc_in", "fc_out")
"""Fields of Layer that are matrices, in the order in which a file lists them."""


@dataclass(frozen=True)
class MatrixId:
    """A matrix of a Decoder: `part` is a field of layer number `layer`, or of the Decoder itself.

    The Decoder's own are "wte" (the embedding) and "head"; their `layer` is None.
    """

    part: str
    layer: int | None = None

    @classmethod
    def all(cls, n_layer: int) -> list[MatrixId]:
        """Every matrix of a model of so many layers, in order: embedding, layers, head."""
        inner = [cls(part, layer) for layer in range(n_layer) for part in LAYER_MATRICES]
        return [cls("wte"), *inner, cls("head")]

    @classmethod
    def from_key(cls, key: str) -> MatrixId:
        """The inverse of `key`."""
        layer, dot, part = key.partition(".")
        return cls(part, int(layer)) if dot else cls(key)

    @property
    def key(self) -> str:
        """The text that stands for it in JSON files: "wte", "3.q"."""
        return self.part if self.layer is None else f"{self.layer}.{self.part}"

    def tensor(self, decoder: Decoder) -> LazyTensor:
        """The matrix itself, [out, in]."""
        owner = decoder if self.layer is None else decoder.layers[self.layer]
        return cast(LazyTensor, getattr(owner, self.part))

    def name(self, names: TensorNames) -> str:
        """The tensor's name in a file of the layout that `names` describes."""
        return names.name(self.part, self.layer)
