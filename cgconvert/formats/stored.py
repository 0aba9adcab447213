"""An artefact's stored tensors beside those it should hold, for `verify` to compare.

The expected tensors are worked out here and not by the writers, on purpose: a verifier that shared
the writers' code would share their mistakes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from cgconvert.model.decoder import Decoder, Geometry
from cgconvert.model.tensor import LazyTensor, Zeros
from cgconvert.model.tensor_names import TensorNames

__all__ = ["SettingsDifferences", "StoredArtefact", "bind", "expected_tensors"]


@dataclass(frozen=True)
class StoredArtefact:
    """The tensors of an artefact as they are stored, and what each of them should hold.

    Nothing that can be read is refused: a tensor that is missing, or a header that says something
    else than the source, is for `verify` to report.

    Attributes:
        tensors: what is stored, by the artefact's own names, decoded as it is read.
        expected: what each name should hold, rows in the order they should have there.
        optional: names that may be absent.
        ignored: names that may be there and that no runtime uses.
        differences: a phrase for each place where the headers' geometry is not the source's.
        adjusted: vectors that the artefact itself says calibration has changed. Where there are
            any, its matrices were rounded with error feedback.
        weighted: whether the artefact says that it was made with an imatrix.
        computed: names of tensors that are a function of the geometry and not the source's: on
            another machine they may differ in the last place.
    """

    tensors: Mapping[str, LazyTensor]
    expected: Mapping[str, LazyTensor]
    optional: frozenset[str]
    ignored: frozenset[str]
    differences: tuple[str, ...]
    adjusted: frozenset[str] = frozenset()
    weighted: bool = False
    computed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class SettingsDifferences:
    """Differences of an artefact's other files from what the source's tokenizer demands.

    `settings` is about token ids and generation settings, `tokenizer` about the tokenizer's files;
    a phrase for each difference.
    """

    settings: Sequence[str]
    tokenizer: Sequence[str]


def expected_tensors(
    source: Decoder, names: TensorNames, mp_num: int = 0
) -> Iterator[tuple[str, LazyTensor]]:
    """Every tensor that a layout stores, as the source has it, rows in the layout's order.

    `mp_num` is the number of groups where the layout packs q, k and v into one matrix.
    """
    decoder = source.half_split() if names.half_split else source
    for part, name in names.model.items():
        yield name, getattr(decoder, part)
    for i, layer in enumerate(decoder.layers):
        for part, name in names.layer.items():
            yield name.format(i=i), layer.packed(mp_num) if part == "qkv" else getattr(layer, part)
        for name in names.zero_biases:
            yield name.format(i=i), Zeros((decoder.geometry.n_embd,), torch.float32)


def bind(
    tensors: Mapping[str, LazyTensor],
    expected: Mapping[str, LazyTensor],
    names: TensorNames,
    geometry: Geometry,
    differences: Sequence[str],
) -> StoredArtefact:
    """Put an artefact's tensors beside the expected ones; the layout says which may be absent."""
    layers = range(geometry.n_layer)
    return StoredArtefact(
        tensors=tensors,
        expected=expected,
        optional=frozenset(name.format(i=i) for name in names.zero_biases for i in layers),
        ignored=frozenset(n.format(i=i) for n in names.dropped for i in layers) - expected.keys(),
        differences=tuple(differences),
    )
