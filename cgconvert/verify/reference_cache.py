"""The outputs of a reference, kept on disk so that none is computed twice.

Whoever verifies several artefacts of one source needs the same outputs again and again, and at 16B
a pass takes minutes. The output of a sequence takes a few megabytes; the folder can be emptied at
any time.
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

VERSION = 2
"""Raise this number if the reference's mathematics change, or the fields of a Distribution."""

DIGEST_BYTES = hashlib.sha256().digest_size


class CachedReference:
    """A reference whose outputs are kept in a folder, one file for each sequence.

    A file's name is a hash of everything that the output depends on: the source's SHA-256, how it
    was read (geometry, groups of qkv), the type that weights are rounded to, the device, torch's
    version, the tokens, and which positions and logits are kept. A file that is damaged, or that
    could not be written, is computed again.

    Args:
        reference: Computes what is not in the folder.
        source_sha256: The digest of the files that the reference's weights come from.
        folder: Where the outputs are kept; made if it is missing.
    """

    def __init__(self, reference: Reference, source_sha256: str, folder: Path) -> None:
        self.reference, self.folder = reference, folder
        self._identity = [
            VERSION, TOP, source_sha256, reference.decoder.geometry.as_dict(),
            str(reference.weight_dtype), reference.device.type, torch.__version__,
        ]  # fmt: skip

    def distributions(
        self,
        sequences: Sequence[Sequence[int]],
        tokenizer_size: int,
        first_positions: Sequence[int] | None = None,
    ) -> list[Distribution]:
        """See Reference.distributions. Sequences that are not on disk are computed in one pass."""
        first_positions = first_positions or [0] * len(sequences)
        paths = [
            self._path(sequence, tokenizer_size, first)
            for sequence, first in zip(sequences, first_positions, strict=True)
        ]
        loaded = {i: _load(path) for i, path in enumerate(paths)}
        outputs = {i: output for i, output in loaded.items() if output is not None}
        missing = [i for i in range(len(paths)) if i not in outputs]
        computed = self.reference.distributions(
            [sequences[i] for i in missing], tokenizer_size, [first_positions[i] for i in missing]
        )
        for i, distribution in zip(missing, computed, strict=True):
            outputs[i] = distribution
            _save(paths[i], distribution)
        return [outputs[i] for i in range(len(paths))]

    def _path(self, sequence: Sequence[int], tokenizer_size: int, first_position: int) -> Path:
        """The file of one sequence's output."""
        identity = [*self._identity, tokenizer_size, first_position, list(map(int, sequence))]
        sha256 = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        return self.folder / f"{sha256}.safetensors"


def _save(path: Path, distribution: Distribution) -> None:
    """Write the SHA-256 of an output and then the output, the whole file or nothing."""
    arrays = {name: np.ascontiguousarray(getattr(distribution, name)) for name in ARRAYS}
    arrays["sizes"] = np.array([distribution.tokenizer_size, distribution.vocab_size])
    data = save(arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, hashlib.sha256(data).digest() + data, durable=False)
    except OSError:
        return  # without the file the output is only computed again


def _load(path: Path) -> Distribution | None:
    """Read an output; None if the file is absent or damaged."""
    try:
        raw = path.read_bytes()
        if hashlib.sha256(raw[DIGEST_BYTES:]).digest() != raw[:DIGEST_BYTES]:
            return None
        arrays = load(raw[DIGEST_BYTES:])
        tokenizer_size, vocab_size = arrays.pop("sizes").tolist()
        return Distribution(**arrays, tokenizer_size=tokenizer_size, vocab_size=vocab_size)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
