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

from cgconvert.model.decoder import Decoder, Geometry
from cgconvert.model.dtype import FLOAT32
from cgconvert.model.tensor import LazyTensor, Zeros
from cgconvert.model.tensor_names import TensorNames

__all__ = [
    "ABSENT",
    "SettingsDifferences",
    "StoredArtefact",
    "as_mapping",
    "entry_differences",
    "expected_tensors",
    "pair_tensors",
    "value_differences",
]


@dataclass(frozen=True)
class StoredArtefact:
    """The tensors of an artefact as they are stored, and what each of them should hold.

    Everything that can be read is accepted: `verify` reports a missing tensor, or a header that
    disagrees with the source.

    Attributes:
        tensors: the stored tensors by their own names; quantized ones are decoded when read.
        expected: the tensor that each name should have, its rows in the order of the artefact.
        optional: names that may be absent.
        ignored: names that may be present and that no runtime uses.
        differences: a phrase for each entry of the headers that disagrees with the geometry.
        adjusted: vectors that calibration changed, as the artefact itself records. If there
            are any, its matrices were rounded with error feedback.
        weighted: whether the artefact records that it was made with an imatrix.
        computed: names of tensors that are computed from the geometry, not taken from the
            source; on another machine they may differ in the last digit.
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
    """What differs between an artefact's other files and what the source's tokenizer requires.

    `settings` has a phrase for each difference in token ids and generation settings, `tokenizer`
    one for each difference in the tokenizer's files.
    """

    settings: Sequence[str]
    tokenizer: Sequence[str]


def expected_tensors(
    source: Decoder, names: TensorNames, mp_num: int = 0
) -> Iterator[tuple[str, LazyTensor]]:
    """Yield each tensor that a layout stores, by name, with the source's values.

    Rows are in the layout's order. `mp_num` is the number of groups if the layout packs q, k and v
    into one matrix, 0 otherwise.
    """
    decoder = source.half_split() if names.half_split else source
    for part, name in names.model.items():
        yield name, getattr(decoder, part)
    for i, layer in enumerate(decoder.layers):
        for part, name in names.layer.items():
            yield name.format(i=i), layer.packed(mp_num) if part == "qkv" else getattr(layer, part)
        for name in names.zero_biases:
            yield name.format(i=i), Zeros((decoder.geometry.n_embd,), FLOAT32)


def pair_tensors(
    tensors: Mapping[str, LazyTensor],
    expected: Mapping[str, LazyTensor],
    names: TensorNames,
    geometry: Geometry,
    differences: Sequence[str],
) -> StoredArtefact:
    """Pair an artefact's tensors with the expected ones.

    `names` is the layout. Its zero biases may be absent. Its dropped tensors (such as the causal
    masks of old checkpoints) may be present and are ignored, unless they are expected.
    """
    layers = range(geometry.n_layer)
    return StoredArtefact(
        tensors=tensors,
        expected=expected,
        optional=frozenset(name.format(i=i) for name in names.zero_biases for i in layers),
        ignored=frozenset(name.format(i=i) for name in names.dropped for i in layers)
        - expected.keys(),
        differences=tuple(differences),
    )


ABSENT = "absent"
"""What a difference shows in place of the value of an entry that is missing."""


def value_differences(
    actual: Mapping[str, Any],
    expected: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> list[str]:
    """Compare entries that are numbers or names; returns a phrase for each difference.

    If a key is absent from `actual`, its value in `defaults` is compared. Keys that are not in
    `expected` are not compared.
    """
    differences = []
    for key, value in expected.items():
        stored = actual.get(key, (defaults or {}).get(key, ABSENT))
        if isinstance(stored, np.ndarray) or stored != value:  # an array has a value for each layer
            differences.append(f"{key} is {reprlib.repr(stored)}, not {value!r}")
    return differences


def entry_differences(
    file: str, actual: Mapping[str, Any], expected: Mapping[str, Any]
) -> list[str]:
    """Compare the entries of a settings file; returns a phrase for each difference.

    For two lists the phrase tells the first entry that differs. `file` is named in each phrase, if
    it is not empty. A token may be an object with flags, {"content": token, ...}.
    """
    differences = []
    for key, value in expected.items():
        stored = actual.get(key, ABSENT)
        if isinstance(stored, dict) and isinstance(value, str):
            stored = stored.get("content", stored)
        if stored == value and isinstance(stored, bool) == isinstance(value, bool):
            continue
        name = f"{file}: {key}" if file else key
        if isinstance(stored, list) and isinstance(value, list):
            pairs = enumerate(zip(stored, value, strict=False))
            first = next((i for i, (a, b) in pairs if a != b), min(len(stored), len(value)))
            counts = f"{len(stored)} entries"
            if len(stored) != len(value):
                counts += f" for {len(value)}"
            differences.append(f"{name} has {counts}, entry {first} is the first that differs")
        else:
            differences.append(f"{name} is {reprlib.repr(stored)}, not {reprlib.repr(value)}")
    return differences


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Return a value of a JSON file if it is an object, otherwise an empty mapping."""
    return value if isinstance(value, dict) else {}
