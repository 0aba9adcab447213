"""Whether the reference is another model than the one an artefact was made from.

Every check fails against another model, and none of them says why. So this is asked before all of
them, of sizes, of a few rows of each tensor and of the tokenizer. A conversion bug must not be
taken for another model: an artefact whose manifest has the SHA-256 of this very source is never
asked, and without a manifest nearly all tensors must hold other numbers, vectors included, and not
the same ones in another order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cgconvert.codecs.quantized_tensor import QuantizedTensor
from cgconvert.errors import CgconvertError, InputError
from cgconvert.formats.comparison import StoredArtefact
from cgconvert.formats.read_options import ReadOptions
from cgconvert.formats.registry import load
from cgconvert.lazy import torch
from cgconvert.model.decoder import Checkpoint, Geometry
from cgconvert.model.dtype import FLOATING_TYPES
from cgconvert.model.tensor import LazyTensor
from cgconvert.model.tokenizer import WHITESPACE_RUNS, Tokenizer
from cgconvert.sources.resolve import Source
from cgconvert.verification.provenance import source_name
from cgconvert.verification.quantization_error import searched_error_over_bound
from cgconvert.verification.thresholds import Check, Verdict
from cgconvert.verification.weights import compare_tensor
from cgconvert.write.manifest import Manifest, find_manifest

__all__ = ["CHECK_NAME", "check_reference"]

CHECK_NAME = "reference"

SAMPLED_ROWS = 8
"""Rows of each matrix that are compared, evenly spaced; vectors are compared whole."""

NEARLY_ALL = 0.9
"""The share of tensors that must hold other numbers if no manifest says what the source was."""

MOST_LAYERS = 0.5
"""The share of layers in which a tensor must differ, if the manifest names another source: a merged
adapter may change one matrix of each layer."""

BEYOND_ROUNDING = 1 / 128
"""The relative difference of two numbers that no rounding to a type of 16 bits makes."""

SAME_NORM = 1e-5
"""The relative difference of the norms of two matrices with the same numbers in another order."""

OTHER_TOKENS = 0.05
"""The share of ids with another text from which on a tokenizer is another one. The runs of white
space do not count: a faulty conversion may lose all of them."""


@dataclass(frozen=True)
class _Tensor:
    """A stored tensor beside the one it should be, both of the same shape."""

    name: str
    stored: LazyTensor
    expected: LazyTensor

    @property
    def layer(self) -> int | None:
        """The number of its layer; None for what is in no layer."""
        match = re.search(r"(?:^|\.)(\d+)\.", self.name)
        return int(match[1]) if match else None

    @property
    def sample(self) -> np.ndarray:
        """The indices of the rows that are compared."""
        rows = self.stored.shape[0]
        if len(self.stored.shape) == 1:
            return np.arange(rows)
        return np.unique(np.linspace(0, rows - 1, min(rows, SAMPLED_ROWS)).astype(int))

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The sampled rows as stored, and those of the source."""
        rows = self.sample
        return self.stored.rows(rows).read(), self.expected.rows(rows).read()


def check_reference(
    artefact: Path,
    format: str,  # noqa: A002 - what a plan and a manifest call it
    source: Checkpoint,
    source_sha256: str,
) -> Check | None:
    """Return a failed check if the source is another model than the artefact's, otherwise None.

    Args:
        artefact: The file or folder.
        format: Its format.
        source: The checkpoint that it is compared with.
        source_sha256: The digest of the source's files.
    """
    try:
        manifest = find_manifest(artefact)
    except InputError:  # another check says so
        manifest = None
    if manifest is not None and manifest.source.get("sha256") == source_sha256:
        return None
    other_size = _other_size(artefact, format, source)
    reason = (
        other_size
        or _other_numbers(load(format).stored_artefact(artefact, source.decoder), source, manifest)
        or _other_tokens(artefact, format, source)
    )
    if not reason:
        return None
    is_another = bool(other_size) or manifest is None
    message = _message(reason, source, manifest, is_another=is_another)
    return Check(CHECK_NAME, None, None, "<=", Verdict.FAIL, message)


def _message(
    reason: str, source: Checkpoint, manifest: Manifest | None, *, is_another: bool
) -> str:
    """Say what the reference is: another model, or not the source that the manifest names.

    That source may be a copy of the same model in other files, which a faulty conversion does not
    fit either. Numbers and tokens do not tell the two apart.
    """
    made_from = source_name(manifest.source.get("origin")) if manifest else None
    if made_from is not None and made_from == source_name(source.origin):
        return (
            f"the source, {made_from}, is another model than the one this artefact was made from: "
            f"{reason}; convert again"
        )
    origin = f"it was made from {made_from}; " if made_from else ""
    kind = "another model than the one" if is_another else "not the source that"
    return f"the reference is {kind} this artefact was made from: {origin}{reason}"


def _other_size(artefact: Path, format: str, source: Checkpoint) -> str:  # noqa: A002
    """Say which sizes are those of another model; empty if none are.

    One layer more or less may be a mistake of the conversion, and so may be what only the headers
    say: the width is taken from the shape of the embedding.
    """
    try:
        decoder = load(format).decoder(artefact)
    except CgconvertError:
        return ""
    own, other = decoder.geometry, source.geometry
    has_other_width = decoder.wte.shape[1] != source.decoder.wte.shape[1]
    if not has_other_width and abs(own.n_layer - other.n_layer) < 2:
        return ""
    return f"it has {_sizes(own)}, {source.name} has {_sizes(other)}"


def _sizes(geometry: Geometry) -> str:
    layers = "layer" if geometry.n_layer == 1 else "layers"
    return f"{geometry.n_layer} {layers} of {geometry.n_embd}"


def _other_numbers(artefact: StoredArtefact, source: Checkpoint, manifest: Manifest | None) -> str:
    """Say how many tensors or layers hold other numbers than the source; empty if too few do."""
    tensors = [
        _Tensor(name, artefact.tensors[name], expected)
        for name, expected in artefact.expected.items()
        if name in artefact.tensors and _is_comparable(artefact, name)
    ]
    if manifest is not None:
        layers = {tensor.layer for tensor in tensors} - {None}
        other = {tensor.layer for tensor in tensors if _differs(artefact, tensor)} - {None}
        if not other or len(other) < MOST_LAYERS * len(layers):
            return ""
        return f"{len(other)} of {len(layers)} layers hold other numbers than {source.name}"
    tensors = [tensor for tensor in tensors if not _is_constant(tensor.expected)]
    others = sum(_is_another(artefact, tensor) for tensor in tensors)
    if not others or others < NEARLY_ALL * len(tensors):
        return ""
    return f"{others} of {len(tensors)} tensors hold other numbers than {source.name}"


def _is_comparable(artefact: StoredArtefact, name: str) -> bool:
    """Whether a tensor comes from the source as it is and has its shape."""
    stored, expected = artefact.tensors[name], artefact.expected[name]
    left_out = artefact.optional | artefact.adjusted | artefact.computed
    return (
        name not in left_out
        and tuple(stored.shape) == tuple(expected.shape)
        and stored.dtype in FLOATING_TYPES
    )


def _differs(artefact: StoredArtefact, tensor: _Tensor) -> bool:
    """Whether a sampled number is not what the source's gives in the tensor's type."""
    rows = tensor.sample
    error = compare_tensor(
        artefact, tensor.name, tensor.stored.rows(rows), tensor.expected.rows(rows)
    )
    return error.differing > 0 or (error.error_over_bound or 0.0) > 1


def _is_another(artefact: StoredArtefact, tensor: _Tensor) -> bool:
    """Whether most sampled numbers are others, and are not the source's in another order."""
    if isinstance(tensor.stored, QuantizedTensor):
        return _is_beyond_bound(tensor)
    stored, expected = (values.float() for values in tensor.read())
    if not _mostly_differ(stored, expected):
        return False
    if len(tensor.stored.shape) == 1:
        return _mostly_differ(stored.sort().values, expected.sort().values)
    whole = [values.read().double().norm() for values in (tensor.stored, tensor.expected)]
    return bool((whole[0] - whole[1]).abs() > SAME_NORM * whole[1])


def _mostly_differ(stored: torch.Tensor, expected: torch.Tensor) -> bool:
    far = (stored - expected).abs() > BEYOND_ROUNDING * expected.abs()
    return bool(far.float().mean() > 0.5)


def _is_beyond_bound(tensor: _Tensor) -> bool:
    """Whether the sampled rows of a quantized matrix are far from what its type may lose."""
    assert isinstance(tensor.stored, QuantizedTensor)
    codec, rows = tensor.stored.codec.with_search(), tensor.sample
    error = searched_error_over_bound(
        tensor.stored.rows(rows), codec, tensor.expected.rows(rows), len(rows)
    )
    return error > 1


def _is_constant(tensor: LazyTensor) -> bool:
    """Whether a vector holds one number only: layer norms that were never trained do."""
    if len(tensor.shape) > 1:
        return False
    values = tensor.read()
    return bool((values == values[0]).all())


def _other_tokens(artefact: Path, format: str, source: Checkpoint) -> str:  # noqa: A002
    """Say how many ids have another text than in the source's tokenizer; empty for a few."""
    try:
        described = load(format).describe(
            str(artefact), Source(artefact, source.name), ReadOptions()
        )
    except CgconvertError:
        return ""
    own, other = _texts(described.tokenizer), _texts(source.tokenizer)
    count = sum(own.get(index) != other.get(index) for index in own.keys() | other.keys())
    if count <= OTHER_TOKENS * max(len(own), len(other)):
        return ""
    return f"{count} of {len(own)} tokens are not those of {source.name}'s tokenizer"


def _texts(tokenizer: Tokenizer) -> Mapping[int, Any]:
    """The text of each id, without the runs of white space."""
    texts = {index: text for text, index in tokenizer.vocabulary.items()}
    texts |= {token.id: token.content for token in tokenizer.added}
    return {index: text for index, text in texts.items() if text not in WHITESPACE_RUNS}
