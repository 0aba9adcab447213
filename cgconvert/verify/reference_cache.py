"""A reference's outputs, kept on disk so that none is computed twice.

Verifying several artefacts of one source needs the same outputs again and again, and at 16B a pass
takes minutes. The output of a sequence has a few megabytes; the folder can be emptied any time.
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
"""Raise this where the reference's mathematics change, or what is kept of its output."""


class CachedReference:
    """A reference over the source with a SHA-256, with its outputs in `folder`.

    An output's file is named by a hash of the source's SHA-256, how it was read (geometry, groups
    of qkv), the type of weights, the device, torch's version, the tokens and what is kept of them.
    An output that is damaged or could not be written is computed again.
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
        """Reference.distributions, of which only what is not on disk is computed, in one pass."""
        first = first or [0] * len(sequences)
        paths = [self._path(s, allowed, f) for s, f in zip(sequences, first, strict=True)]
        loaded = {i: _load(path) for i, path in enumerate(paths)}
        outputs = {i: output for i, output in loaded.items() if output is not None}
        missing = [i for i in range(len(paths)) if i not in outputs]
        computed = self.reference.distributions(
            [sequences[i] for i in missing], allowed, [first[i] for i in missing]
        )
        for i, distribution in zip(missing, computed, strict=True):
            outputs[i] = distribution
            _save(paths[i], distribution)
        return [outputs[i] for i in range(len(paths))]

    def _path(self, sequence: Sequence[int], allowed: int, first: int) -> Path:
        identity = json.dumps([*self._identity, allowed, first, list(map(int, sequence))])
        return self.folder / f"{hashlib.sha256(identity.encode()).hexdigest()}.safetensors"


def _save(path: Path, distribution: Distribution) -> None:
    """Write an output with its SHA-256 before it, the whole file or nothing."""
    arrays = {name: np.ascontiguousarray(getattr(distribution, name)) for name in ARRAYS}
    arrays["sizes"] = np.array([distribution.allowed, distribution.vocabulary])
    data = save(arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, hashlib.sha256(data).digest() + data, durable=False)
    except OSError:
        return  # a cache that cannot be written costs time, nothing else


def _load(path: Path) -> Distribution | None:
    """Read an output; None where it is absent or damaged."""
    try:
        raw = path.read_bytes()
        if hashlib.sha256(raw[32:]).digest() != raw[:32]:
            return None
        arrays = load(raw[32:])
        allowed, vocabulary = arrays.pop("sizes").tolist()
        return Distribution(**arrays, allowed=allowed, vocabulary=vocabulary)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
