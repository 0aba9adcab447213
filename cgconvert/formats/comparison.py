"""Compare an artefact with what it should hold: its tensors, and the entries of its other files.

The expected tensors are worked out here and not by the writers, on purpose: a verifier that shared
the writers' code would share their mistakes.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cgconvert.model.decoder import Decoder, Geometry
from cgconvert.model.tensor import LazyTensor, Zeros
from cgconvert.model.tensor_names import TensorNames

__all__ = [
    "ABSENT",
    "SettingsDifferences",
    "StoredArtefact",
    "as_mapping",
    "bind",
    "entry_differences",
    "expected_tensors",
    "value_differences",
]


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


ABSENT = "absent"


def value_differences(
    actual: Mapping[str, Any],
    expected: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> list[str]:
    """Compare numbers and names. A key that is absent has the value that `defaults` gives it."""
    texts = []
    for key, value in expected.items():
        stored = actual.get(key, (defaults or {}).get(key, ABSENT))
        if isinstance(stored, np.ndarray) or stored != value:  # an array: a value for each layer
            texts.append(f"{key} is {reprlib.repr(stored)}, not {value!r}")
    return texts


def entry_differences(
    file: str, actual: Mapping[str, Any], expected: Mapping[str, Any]
) -> list[str]:
    """Compare the entries of a file of settings; of two lists, say where they first differ.

    A token may be written with its flags, as {"content": token, ...}.
    """
    texts = []
    for key, value in expected.items():
        stored = actual.get(key, ABSENT)
        if isinstance(stored, dict) and isinstance(value, str):
            stored = stored.get("content", stored)
        if stored == value and isinstance(stored, bool) == isinstance(value, bool):
            continue
        name = f"{file}: {key}" if file else key
        if isinstance(stored, list) and isinstance(value, list):
            pairs = enumerate(zip(stored, value, strict=False))
            place = next((i for i, (a, b) in pairs if a != b), min(len(stored), len(value)))
            counts = f"{len(stored)} entries for {len(value)}"
            texts.append(f"{name} has {counts}, entry {place} is the first that differs")
        else:
            texts.append(f"{name} is {reprlib.repr(stored)}, not {reprlib.repr(value)}")
    return texts


def as_mapping(value: Any) -> Mapping[str, Any]:
    """A part of a JSON file that should be an object: itself, or an empty one."""
    return value if isinstance(value, dict) else {}
