"""Comparison of every stored tensor with the source's; no runtime is started.

It shows mistakes that no prompt reaches. The source's rows are put into the layout's order and
compared some rows at a time, so memory follows a chunk and each file is read once, in its order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.quantized_tensor import QuantizedTensor
from cgconvert.errors import first_few
from cgconvert.formats.registry import load
from cgconvert.formats.stored import StoredArtefact
from cgconvert.io.progress import Progress, Silent
from cgconvert.model.decoder import Decoder
from cgconvert.model.tensor import LazyTensor
from cgconvert.verify.quantization_error import adjustment, searched_error
from cgconvert.verify.verdict import Check, at_most

__all__ = ["TensorError", "check_weights", "compare"]

CHUNK_BYTES = 16 << 20
"""float32 bytes of the rows of a tensor in memory at once."""

NAMED = 3
"""How many tensors a check's detail names, the worst first."""


@dataclass(frozen=True)
class TensorError:
    """How one stored tensor differs from the source's.

    Attributes:
        name: the tensor's name in the artefact.
        type: the type it is stored in.
        size: its number of values.
        nonfinite: values that are infinite or NaN.
        differing: values of an unquantized tensor that are not the source's in its type, bit for
            bit.
        relative_rms: ||stored - source|| / ||source||, what rounding to the type costs included:
            norms of rows in float32, their sums in float64; NaN where a stored value is.
        worst: the largest error of a quantized or adjusted tensor as a multiple of its bound; None
            for others.
    """

    name: str
    type: str
    size: int
    nonfinite: int
    differing: int
    relative_rms: float
    worst: float | None = None


def check_weights(
    artefact: Path,
    format: str,  # noqa: A002 - what a plan and a manifest call it
    source: Decoder,
    progress: Progress | None = None,
) -> tuple[list[Check], list[TensorError]]:
    """Compare every stored tensor with the source's.

    Args:
        artefact: the file or folder to check.
        format: the artefact's format: "huggingface", "onnx" or "gguf".
        source: the model it was converted from.
        progress: told how many values are compared.

    Returns:
        The checks weights.geometry, .tensors, .finite and .equal; .error where some tensors are
        quantized, .adjusted where the artefact says that calibration changed some vectors. With
        them each tensor's errors, in the layout's order.

    Raises:
        InputError: the artefact cannot be read at all.
    """
    stored = load(format).stored(artefact, source)
    errors = compare(stored, progress or Silent())
    faults = _faults(stored)
    equal = [e for e in errors if e.worst is None]
    adjusted = [e for e in errors if e.name in stored.adjusted]
    quantized = [e for e in errors if e.worst is not None and e not in adjusted]
    differences = stored.differences
    checks = [
        at_most("weights.geometry", float(len(differences)), 0, "; ".join(differences)),
        at_most("weights.tensors", float(len(faults)), 0, first_few(faults, NAMED)),
        _counted("weights.finite", [(e.name, e.nonfinite, e.size) for e in errors], "not finite"),
        _counted("weights.equal", [(e.name, e.differing, e.size) for e in equal], "differ"),
    ]
    for name, bounded in (("weights.error", quantized), ("weights.adjusted", adjusted)):
        bounded.sort(key=lambda e: -(e.worst or 0))
        detail = ", ".join(f"{e.name} {e.worst:.3g}" for e in bounded[:NAMED])
        checks += [at_most(name, bounded[0].worst, 1, detail)] if bounded else []
    return checks, errors


def compare(artefact: StoredArtefact, progress: Progress) -> list[TensorError]:
    """The errors of every tensor of the expected shape, in the layout's order."""
    total = sum(math.prod(tensor.shape) for tensor in artefact.expected.values())
    progress.step("comparing weights", total)
    errors = []
    for name, expected in artefact.expected.items():
        tensor = artefact.tensors.get(name)
        if tensor is not None and _fault(tensor, expected) is None:
            errors.append(_compare(artefact, name, tensor, expected))
        progress.advance(math.prod(expected.shape))
    return errors


def _compare(
    artefact: StoredArtefact, name: str, tensor: LazyTensor, expected: LazyTensor
) -> TensorError:
    """Compare one tensor, some rows at a time."""
    nonfinite = differing = 0
    error = power = 0.0
    worst: float | None = None
    for rows in _chunks(tensor):
        source = expected.read(rows)
        if isinstance(tensor, QuantizedTensor):
            values, ratio = _compare_blocks(tensor, rows, source)
            worst = max(worst or 0.0, ratio)
        else:
            values = tensor.read(rows)
            count = _beyond_one_ulp if name in artefact.computed else _differing
            differing += count(values, source)
        nonfinite += int((~values.isfinite()).sum())
        error += _squares(values.float() - source.float())
        power += _squares(source.float())
    if name in artefact.adjusted and len(tensor.shape) == 1:
        differing, worst = 0, adjustment(tensor, expected)
    elif isinstance(tensor, QuantizedTensor) and _is_searched(artefact, tensor):
        coarsest = _coarsest(artefact) if artefact.adjusted else None
        codec = tensor.codec.with_search()
        worst = searched_error(tensor, codec, expected, _chunk_rows(tensor), coarsest)
    relative = math.sqrt(error / power) if power else 0.0 if error == 0 else math.inf
    size = math.prod(tensor.shape)
    return TensorError(name, _type(tensor), size, nonfinite, differing, relative, worst)


def _compare_blocks(
    tensor: QuantizedTensor, rows: slice, source: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """The decoded rows, and their largest error over the bound of the type's rounding rule.

    The error is 0 for a type that has no rule.
    """
    codec = tensor.codec
    if codec.rounding is None:
        return tensor.read(rows), 0.0
    params = tensor.params(rows)
    values = codec.values(params).reshape(source.shape)
    blocks = source.float().reshape(-1, codec.block_size)
    return values, float(codec.rounding.error_ratio(params, blocks, codec).max())


def _is_searched(artefact: StoredArtefact, tensor: QuantizedTensor) -> bool:
    """Whether codes were chosen by a search or by GPTQ, so that none has to be the nearest."""
    return bool(artefact.adjusted) or tensor.codec.is_searched(artefact.weighted)


def _coarsest(artefact: StoredArtefact) -> BlockCodec | None:
    """The type of the fewest codes; None in an artefact without quantized tensors."""
    quantized = (t for t in artefact.tensors.values() if isinstance(t, QuantizedTensor))
    codecs = [tensor.codec.with_search() for tensor in quantized]
    return min(codecs, key=lambda codec: (codec.max_code, -codec.block_size), default=None)


def _chunk_rows(tensor: LazyTensor) -> int:
    """Rows that are in memory at once."""
    return max(1, CHUNK_BYTES // (4 * math.prod(tensor.shape[1:])))


def _chunks(tensor: LazyTensor) -> Iterator[slice]:
    rows, step = tensor.shape[0], _chunk_rows(tensor)
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


def _squares(rows: torch.Tensor) -> float:
    """The sum of squares: float32 within a row, whose length bounds its rounding, then float64."""
    norms = torch.linalg.vector_norm(rows.reshape(len(rows), -1), dim=1)
    return float(norms.double().square_().sum())


def _type(tensor: LazyTensor) -> str:
    if isinstance(tensor, QuantizedTensor):
        return tensor.codec.label
    return str(tensor.dtype).removeprefix("torch.")


def _differing(values: torch.Tensor, source: torch.Tensor) -> int:
    """How many are not the source's, in the type of `values`, bit for bit.

    NaN then equals itself, and -0 is not 0.
    """
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    bits = values.contiguous().view(integers)
    source_bits = source.to(values.dtype).contiguous().view(integers)
    return 0 if torch.equal(bits, source_bits) else int((bits != source_bits).sum())


def _beyond_one_ulp(values: torch.Tensor, source: torch.Tensor) -> int:
    """How many differ by more than one unit in the last place, at 1, of the type of `values`."""
    slack = torch.finfo(values.dtype).eps
    return int((~((values.double() - source.double()).abs() <= slack)).sum())


def _faults(artefact: StoredArtefact) -> list[str]:
    """Tensors that are missing, of another shape or kind, or not the source's: a phrase each."""
    faults = []
    for name, expected in artefact.expected.items():
        tensor = artefact.tensors.get(name)
        if tensor is None:
            if name not in artefact.optional:
                faults.append(f"{name} is missing")
        elif fault := _fault(tensor, expected):
            faults.append(f"{name} is {fault}")
    extra = artefact.tensors.keys() - artefact.expected.keys() - artefact.ignored
    return faults + [f"{name} is not one of the source's" for name in sorted(extra)]


def _fault(tensor: LazyTensor, expected: LazyTensor) -> str | None:
    if tuple(tensor.shape) != tuple(expected.shape):
        return f"{list(tensor.shape)}, not {list(expected.shape)}"
    return None if tensor.dtype.is_floating_point else f"{tensor.dtype}, not a floating type"


def _counted(name: str, counts: Sequence[tuple[str, int, int]], phrase: str) -> Check:
    """The check that no value is counted; `counts` are (tensor, count, size)."""
    bad = sorted((c for c in counts if c[1]), key=lambda c: -c[1] / c[2])
    texts = [f"{count} of {size} {phrase} in {tensor}" for tensor, count, size in bad]
    return at_most(name, float(sum(c[1] for c in bad)), 0, first_few(texts, NAMED))
