"""Names of the matrices of a decoder, whatever layout they are stored in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from cgconvert.model.decoder import Decoder
from cgconvert.model.tensor import LazyTensor
from cgconvert.model.tensor_names import TensorNames

__all__ = ["LAYER_MATRICES", "MatrixId"]

LAYER_MATRICES = ("q", "k", "v", "o", "fc_in", "fc_out")
"""The fields of Layer that are matrices, in the order in which files list them."""


@dataclass(frozen=True)
class MatrixId:
    """The name of one matrix of a Decoder.

    Attributes:
        part: The name of a field: one of LAYER_MATRICES of a Layer; "wte" (the embedding) or
            "head" of the Decoder.
        layer: The index of the layer, or None if `part` is a field of the Decoder.
    """

    part: str
    layer: int | None = None

    @classmethod
    def all(cls, n_layer: int) -> list[MatrixId]:
        """All matrices of a model with `n_layer` layers, in order: embedding, layers, head."""
        in_layers = [cls(part, layer) for layer in range(n_layer) for part in LAYER_MATRICES]
        return [cls("wte"), *in_layers, cls("head")]

    @classmethod
    def from_key(cls, key: str) -> MatrixId:
        """Make the id from its `key`."""
        layer, dot, part = key.partition(".")
        return cls(part, int(layer)) if dot else cls(key)

    @property
    def key(self) -> str:
        """The id as text for JSON files, for example "wte" or "3.q" (q of layer 3)."""
        return self.part if self.layer is None else f"{self.layer}.{self.part}"

    def tensor(self, decoder: Decoder) -> LazyTensor:
        """The matrix with this id in a decoder, [out, in]."""
        owner = decoder if self.layer is None else decoder.layers[self.layer]
        return cast(LazyTensor, getattr(owner, self.part))

    def name(self, names: TensorNames) -> str:
        """The name of the matrix in the layout that `names` describes."""
        return names.name(self.part, self.layer)
