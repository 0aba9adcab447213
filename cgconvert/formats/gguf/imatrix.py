"""An importance matrix: how large the inputs of each matrix are, so what an error there costs.

llama.cpp's imatrix is the sum of each input's square over the positions of a text, the diagonal of
X^T X, and the number of positions. Of the family's matrices llama-imatrix collects all but the
embedding, which multiplies nothing, and the head, which it collects with --process-output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cgconvert.errors import InputError, first_few
from cgconvert.model.decoder import Decoder
from cgconvert.model.tensor_names import GGUF

__all__ = ["MATRICES", "Imatrix", "Inputs"]

MATRICES = ("q", "k", "v", "o", "fc_in", "fc_out")
"""The matrices of a layer. Head and embedding may be missing: llama-imatrix leaves them out."""

DAMPING = 1.0
"""How many times the mean is added to every column, so that an error in a column that the text
happened not to use still counts a little."""

NAMED = 3
"""How many matrices an error names."""


@dataclass(frozen=True)
class Inputs:
    """The inputs of one matrix: `squares`, float32 [columns], are sums over `count` positions.

    Old files count batches instead of positions; the ratio of two columns is the same.
    """

    squares: torch.Tensor
    count: int


@dataclass(frozen=True)
class Imatrix:
    """`inputs` by the matrix's name in GGUF, from `chunks` pieces of text of `chunk_size` tokens.

    `datasets` name the texts. `file` is the name of the file, without its folder, and `sha256` that
    of its bytes; of one that was just collected, of the bytes that writing it gives.
    """

    inputs: Mapping[str, Inputs]
    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int
    file: str = ""
    sha256: str = ""

    def importance(self, name: str) -> torch.Tensor | None:
        """How much a squared error counts in each column, float32 [columns] of mean 1.

        None for a matrix that the file does not have, and for one whose inputs are all zero.
        """
        if name not in self.inputs:
            return None
        squares = self.inputs[name].squares.double()
        mean = squares.mean()
        if not mean:
            return None
        return ((squares / mean + DAMPING) / (1 + DAMPING)).float()

    @property
    def manifest_entry(self) -> dict[str, str]:
        """The entry of a manifest: file name and SHA-256."""
        return {"file": self.file, "sha256": self.sha256}

    def check(self, decoder: Decoder, where: str) -> None:
        """Check that it is of a model of this geometry, and whole; `where` is named in errors.

        An imatrix of another model with the same widths cannot be recognised. Raises InputError.
        """
        needed, optional = _columns(decoder)
        columns = needed | optional
        for name, inputs in self.inputs.items():
            length = len(inputs.squares)
            if name in columns and length != columns[name]:
                raise InputError(
                    f"{where}: is another model's imatrix: {name} has {length} values, the model's "
                    f"has {columns[name]} columns; collect one from this model"
                )
        unknown = sorted(self.inputs.keys() - columns.keys())
        if unknown:
            raise InputError(
                f"{where}: is another model's imatrix: the model has no {_list(unknown)}; collect "
                "one from this model"
            )
        missing = [name for name in needed if name not in self.inputs]
        if missing:
            raise InputError(
                f"{where}: has none of {len(missing)} of the model's {len(needed)} matrices: "
                f"{_list(missing)}; collect one from the whole model"
            )


def _columns(decoder: Decoder) -> tuple[dict[str, int], dict[str, int]]:
    """Columns of the matrices that an imatrix has, and of those that it may have."""
    needed = {
        GGUF.layer[part].format(i=i): getattr(layer, part).shape[1]
        for i, layer in enumerate(decoder.layers)
        for part in MATRICES
    }
    optional = {GGUF.model[part]: getattr(decoder, part).shape[1] for part in ("wte", "head")}
    return needed, optional


def _list(names: list[str]) -> str:
    return first_few(names, NAMED, separator=", ", conjunction=" and ")
