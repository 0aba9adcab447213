"""Compare what a file says with what it should say: a phrase for each difference."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["ABSENT", "as_mapping", "entry_differences", "value_differences"]

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
