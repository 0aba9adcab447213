"""What a reference said about a sequence, kept on disk and not computed twice.

A folder of artefacts from one source asks the reference the same questions again and again, and at
16B each answer takes minutes. An answer is a few megabytes, and the folder can be emptied any time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cgconvert.io.staging import write_atomic
from cgconvert.verify.distribution import ARRAYS, TOP, Distribution
from cgconvert.verify.reference import Reference

__all__ = ["CachedReference"]

VERSION = 1
"""Of the reference's mathematics and of what is kept: raise it where either changes."""


class CachedReference:
    """A reference over the source of a SHA-256, its answers in `folder`.

    An answer goes by the source's hash, how it was read (geometry, groups of qkv), the type of
    weights, the device and torch's version, the tokens, and what is kept of them.
    One that is damaged, or cannot be written, is computed again.
    """

    def __init__(self, reference: Reference, source_sha256: str, folder: Path) -> None:
        self.reference, self.folder = reference, folder
        self._identity = [
            VERSION, TOP, source_sha256, reference.decoder.geometry.as_dict(),
            str(reference.weights), reference.device.type, torch.__version__,
        ]  # fmt: skip

    def distributions(
        self,
        sequences: Sequence[Sequence[int]],
        allowed: int,
        first: Sequence[int] | None = None,
    ) -> list[Distribution]:
        """As Reference.distributions; only what is not yet known is computed, in one pass."""
        first = first or [0] * len(sequences)
        paths = [self._path(s, allowed, f) for s, f in zip(sequences, first, strict=True)]
        found = [_load(path) for path in paths]
        new = [i for i, known in enumerate(found) if known is None]
        computed = self.reference.distributions(
            [sequences[i] for i in new], allowed, [first[i] for i in new]
        )
        for i, distribution in zip(new, computed, strict=True):
            found[i] = distribution
            _keep(paths[i], distribution)
        return [distribution for distribution in found if distribution is not None]

    def _path(self, sequence: Sequence[int], allowed: int, first: int) -> Path:
        identity = json.dumps([*self._identity, allowed, first, list(map(int, sequence))])
        return self.folder / f"{hashlib.sha256(identity.encode()).hexdigest()}.safetensors"


def _keep(path: Path, distribution: Distribution) -> None:
    arrays = {name: np.ascontiguousarray(getattr(distribution, name)) for name in ARRAYS}
    arrays["sizes"] = np.array([distribution.allowed, distribution.vocabulary])
    data = save(arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, hashlib.sha256(data).digest() + data, durable=False)
    except OSError:
        return  # a cache that cannot be written costs time, nothing else


def _load(path: Path) -> Distribution | None:
    try:
        raw = path.read_bytes()
        if hashlib.sha256(raw[32:]).digest() != raw[:32]:
            return None
        arrays = load(raw[32:])
        allowed, vocabulary = arrays.pop("sizes").tolist()
        return Distribution(**arrays, allowed=allowed, vocabulary=vocabulary)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
