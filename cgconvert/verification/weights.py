"""Comparison of every stored tensor with the source's; no runtime is started.

It shows mistakes that no prompt reaches. The source's rows are put into the order that the artefact
should store them in, and compared a chunk of rows at a time. So only a chunk is in memory, and each
file is read once, from its beginning to its end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.quantized_tensor import QuantizedTensor
from cgconvert.errors import first_few
from cgconvert.formats.comparison import StoredArtefact
from cgconvert.formats.registry import load
from cgconvert.io.progress import Amount, Progress, SilentProgress
from cgconvert.lazy import torch
from cgconvert.model.decoder import Decoder
from cgconvert.model.dtype import FLOATING_TYPES
from cgconvert.model.tensor import LazyTensor
from cgconvert.verification.quantization_error import (
    adjustment_over_bound,
    is_too_exact,
    searched_error_over_bound,
)
from cgconvert.verification.thresholds import (
    MAX_NAMED,
    Check,
    Verdict,
    at_most,
    no_differences,
)

__all__ = ["TensorError", "check_weights", "compare", "compare_tensor"]

CHUNK_BYTES = 16 << 20
"""How many bytes of a tensor are in memory at once, as float32."""

QUICK_ROWS, QUICK_RUNS = 64, 8
"""Rows of a quantized matrix that a quick verification compares, and the runs that they are in."""

SUSPICIOUS = 0.25
"""A largest error of a quantized matrix, as a multiple of its bound, that is compared with the
rounding of its type: a matrix of thousands of weights that are rounded has 0.9 and more, a searched
one 0.4, one that its type holds exactly 0."""


@dataclass(frozen=True)
class TensorError:
    """How one stored tensor differs from the source's.

    Attributes:
        name: The tensor's name in the artefact.
        type: The type it is stored in.
        size: Its number of values.
        nonfinite: How many values are infinite or NaN.
        differing: How many values of an unquantized tensor are not, bit for bit, the source's
            converted to the tensor's type. 0 for a quantized or adjusted tensor.
        relative_rms: ||stored - source|| / ||source||, the cost of rounding to the type included:
            norms of rows in float32, their sums in float64. NaN if a stored value is NaN.
        error_over_bound: The largest error of a quantized matrix or of a vector that calibration
            adjusted, as a multiple of its bound: at most 1 if it is right, never NaN. None for all
            other tensors, which have to be equal.
        too_exact: Whether a quantized matrix is much nearer to the source than its type can be.
    """

    name: str
    type: str
    size: int
    nonfinite: int
    differing: int
    relative_rms: float
    error_over_bound: float | None = None
    too_exact: bool = False

    @property
    def is_wrong(self) -> bool:
        """Whether the tensor is not what the source says it should be."""
        if self.nonfinite or self.too_exact:
            return True
        return bool(self.differing) if self.error_over_bound is None else self.error_over_bound > 1


def check_weights(
    artefact: Path,
    format: str,  # noqa: A002 - what a plan and a manifest call it
    source: Decoder,
    progress: Progress | None = None,
    *,
    quick: bool = False,
) -> tuple[list[Check], list[TensorError]]:
    """Compare every stored tensor with the source's.

    The checks are:
        weights.geometry: the headers give the source's geometry.
        weights.tensors: no tensor is missing, superfluous, or of another shape or kind.
        weights.finite: no value is infinite or NaN.
        weights.equal: all values of unquantized tensors are the source's, rounded to their type.
        weights.error: the errors of quantized matrices are within their bounds. Left out if the
            artefact has none.
        weights.adjusted: so are the changes of the vectors that, as the artefact says, calibration
            has adjusted. Left out if the artefact has none.

    Args:
        artefact: The file or folder to check.
        format: The artefact's format: "huggingface", "onnx" or "gguf".
        source: The model it was made from.
        progress: Is told how many values have been compared.
        quick: Whether only some rows of quantized tensors are compared.

    Returns:
        The checks, and the errors of each tensor in the order in which the artefact stores them.

    Raises:
        InputError: The artefact cannot be read at all.
    """
    stored = load(format).stored_artefact(artefact, source)
    errors = compare(stored, progress or SilentProgress(), quick=quick)
    must_be_equal = [e for e in errors if e.error_over_bound is None]
    adjusted = [e for e in errors if _is_adjusted(stored, e.name)]
    quantized = [
        e for e in errors if e.error_over_bound is not None and not _is_adjusted(stored, e.name)
    ]
    return [
        at_most(
            "weights.geometry", float(len(stored.differences)), 0, "; ".join(stored.differences)
        ),
        no_differences("weights.tensors", _tensor_differences(stored)),
        _none_counted("weights.finite", [(e, e.nonfinite) for e in errors], "not finite"),
        _none_counted("weights.equal", [(e, e.differing) for e in must_be_equal], "differ"),
        *_within_bounds("weights.error", quantized),
        *_within_bounds("weights.adjusted", adjusted),
    ], errors


def compare(
    artefact: StoredArtefact, progress: Progress, *, quick: bool = False
) -> list[TensorError]:
    """Compute the errors of every tensor that is there in its shape, in the artefact's order.

    If `quick`, only QUICK_ROWS of each quantized matrix are compared.
    """
    total = sum(math.prod(tensor.shape) for tensor in artefact.expected.values())
    progress.step("comparing weights", Amount(total, "weights"))
    errors = []
    for name, expected in artefact.expected.items():
        tensor = artefact.tensors.get(name)
        if tensor is not None and _difference_in_kind(tensor, expected) is None:
            errors.append(compare_tensor(artefact, name, tensor, expected, quick=quick))
        progress.advance(math.prod(expected.shape))
    return errors


def compare_tensor(
    artefact: StoredArtefact,
    name: str,
    tensor: LazyTensor,
    expected: LazyTensor,
    *,
    quick: bool = False,
) -> TensorError:
    """Compare one tensor, a chunk of rows at a time; then a searched or adjusted one as a whole."""
    is_sampled = quick and isinstance(tensor, QuantizedTensor)
    nonfinite = differing = 0
    squared_error = squared_norm = 0.0
    error_over_bound: float | None = None
    equal: list[slice] = []
    for rows in _sampled_chunks(tensor) if is_sampled else _chunks(tensor):
        source = expected.read(rows)
        if isinstance(tensor, QuantizedTensor):
            values, chunk_error = _compare_blocks(tensor, rows, source)
            error_over_bound = max(error_over_bound or 0.0, chunk_error)
        else:
            values = tensor.read(rows)
            count = _count_beyond_one_ulp if name in artefact.computed else _count_differing
            differing_here = count(values, source)
            differing += differing_here
            is_equal = not differing_here and name not in artefact.computed
            if is_equal and values.dtype == source.dtype and values.isfinite().all():
                equal.append(rows)
                continue
        nonfinite += int((~values.isfinite()).sum())
        squared_error += _sum_of_squares(values.float() - source.float())
        squared_norm += _sum_of_squares(source.float())
    if squared_error:  # without an error the norm does not matter
        squared_norm += sum(_sum_of_squares(expected.read(rows).float()) for rows in equal)
    too_exact = False
    if _is_adjusted(artefact, name):
        differing, error_over_bound = 0, adjustment_over_bound(tensor, expected)
    elif isinstance(tensor, QuantizedTensor):
        codec, size = tensor.codec.with_search(), _chunk_rows(tensor)
        sample = np.unique([row for c in _sampled_chunks(tensor) for row in range(c.start, c.stop)])
        pair = (tensor.rows(sample), expected.rows(sample)) if quick else (tensor, expected)
        if _is_searched(artefact, tensor):
            coarsest = _coarsest(artefact) if artefact.adjusted else None
            error_over_bound = searched_error_over_bound(pair[0], codec, pair[1], size, coarsest)
        if error_over_bound is not None and error_over_bound < SUSPICIOUS:
            too_exact = is_too_exact(pair[0], codec, pair[1], size)
    return TensorError(
        name=name,
        type=_type(tensor),
        size=math.prod(tensor.shape),
        nonfinite=nonfinite,
        differing=differing,
        relative_rms=_relative_rms(squared_error, squared_norm),
        error_over_bound=error_over_bound,
        too_exact=too_exact,
    )


def _compare_blocks(
    tensor: QuantizedTensor, rows: slice, source: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """Decode rows of a quantized tensor and compare them with the source's.

    Returns the values, float32 of the shape of `source`, and their largest error as a multiple of
    the bound of the codec's rounding rule: 0 for a codec without a rule, never NaN.
    """
    codec = tensor.codec
    if codec.rounding is None:
        return tensor.read(rows), 0.0
    params = tensor.params(rows)
    values = codec.values(params).reshape(source.shape)
    blocks = source.float().reshape(-1, codec.block_size)
    return values, float(codec.rounding.error_ratio(params, blocks, codec).max())


def _is_adjusted(artefact: StoredArtefact, name: str) -> bool:
    """Whether a tensor is a vector that calibration has adjusted, as the artefact itself says.

    Calibration adjusts vectors alone: a matrix that the artefact calls adjusted is none.
    """
    return name in artefact.adjusted and len(artefact.expected[name].shape) == 1


def _is_searched(artefact: StoredArtefact, tensor: QuantizedTensor) -> bool:
    """Whether a search or GPTQ chose the codes, so that they need not be the nearest ones."""
    return bool(artefact.adjusted) or tensor.codec.is_searched(artefact.weighted)


def _coarsest(artefact: StoredArtefact) -> BlockCodec | None:
    """The codec with the fewest codes; None in an artefact without quantized tensors."""
    quantized = (t for t in artefact.tensors.values() if isinstance(t, QuantizedTensor))
    codecs = [tensor.codec.with_search() for tensor in quantized]
    return min(codecs, key=lambda codec: (codec.max_code, -codec.block_size), default=None)


def _chunk_rows(tensor: LazyTensor) -> int:
    """How many rows of a tensor are in memory at once."""
    return max(1, CHUNK_BYTES // (4 * math.prod(tensor.shape[1:])))


def _chunks(tensor: LazyTensor) -> Iterator[slice]:
    """Cut the rows of a tensor into chunks."""
    rows, step = tensor.shape[0], _chunk_rows(tensor)
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


def _sampled_chunks(tensor: LazyTensor) -> Iterator[slice]:
    """Cut QUICK_ROWS from a tensor, in runs that are evenly spaced; all rows of a smaller one."""
    rows = tensor.shape[0]
    if rows <= QUICK_ROWS:
        yield slice(0, rows)
        return
    length = QUICK_ROWS // QUICK_RUNS
    for first in np.linspace(0, rows - length, QUICK_RUNS).astype(int).tolist():
        yield slice(first, first + length)


def _sum_of_squares(rows: torch.Tensor) -> float:
    """Sum the squares in float32 within a row, which bounds the rounding error, then in float64."""
    norms = torch.linalg.vector_norm(rows.reshape(len(rows), -1), dim=1)
    return float(norms.double().square_().sum())


def _relative_rms(squared_error: float, squared_norm: float) -> float:
    """||stored - source|| / ||source||; 0 for 0 / 0, and infinite for all else over 0."""
    if squared_norm:
        return math.sqrt(squared_error / squared_norm)
    return 0.0 if squared_error == 0 else math.inf


def _type(tensor: LazyTensor) -> str:
    """The type that a tensor is stored in: the codec's label or torch's name, such as "float16"."""
    if isinstance(tensor, QuantizedTensor):
        return tensor.codec.label
    return str(tensor.dtype)


def _count_differing(values: torch.Tensor, source: torch.Tensor) -> int:
    """Count the values that are not, bit for bit, the source's converted to their type.

    NaN then equals itself, and -0 is not 0.
    """
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    bits = values.contiguous().view(integers)
    source_bits = source.to(values.dtype).contiguous().view(integers)
    return 0 if torch.equal(bits, source_bits) else int((bits != source_bits).sum())


def _count_beyond_one_ulp(values: torch.Tensor, source: torch.Tensor) -> int:
    """Count the values that differ by more than the spacing of their type's numbers at 1.

    Sines and cosines, which are at most 1, may differ by so much on another machine.
    """
    spacing = torch.finfo(values.dtype).eps
    return int((~((values.double() - source.double()).abs() <= spacing)).sum())


def _tensor_differences(artefact: StoredArtefact) -> list[str]:
    """List tensors that are missing, superfluous, or of another shape or kind: a phrase each."""
    differences = []
    for name, expected in artefact.expected.items():
        tensor = artefact.tensors.get(name)
        if tensor is None:
            if name not in artefact.optional:
                differences.append(f"{name} is missing")
        elif difference := _difference_in_kind(tensor, expected):
            differences.append(f"{name} is {difference}")
    extra = artefact.tensors.keys() - artefact.expected.keys() - artefact.ignored
    return differences + [f"{name} is not one of the source's" for name in sorted(extra)]


def _difference_in_kind(tensor: LazyTensor, expected: LazyTensor) -> str | None:
    """Why the values of a tensor cannot be compared: another shape, or integers; None if they can.

    The text continues a sentence that begins "<name> is".
    """
    if tuple(tensor.shape) != tuple(expected.shape):
        return f"{list(tensor.shape)}, not {list(expected.shape)}"
    return None if tensor.dtype in FLOATING_TYPES else f"{tensor.dtype}, not a floating type"


def _none_counted(name: str, counts: Sequence[tuple[TensorError, int]], phrase: str) -> Check:
    """Make a check that passes if all counts are 0.

    `counts` says how many values of each tensor are wrong, and `phrase` what is wrong with them.
    The detail names the tensors with the largest share of wrong values.
    """
    wrong = [(error, count) for error, count in counts if count]
    wrong.sort(key=lambda pair: pair[1] / pair[0].size, reverse=True)
    texts = [f"{count} of {error.size} {phrase} in {error.name}" for error, count in wrong]
    detail = first_few(texts, MAX_NAMED)
    if len(wrong) > 1:
        detail = f"{len(wrong)} of {len(counts)} tensors: {detail}"
    return at_most(name, float(sum(count for _, count in wrong)), 0, detail)


def _within_bounds(name: str, errors: Sequence[TensorError]) -> list[Check]:
    """Make the check that no error is above its bound; no check if there are no errors.

    The value is the largest error as a multiple of its bound; the detail names the worst tensors.
    """
    ratios = [(e.error_over_bound, e.name) for e in errors if e.error_over_bound is not None]
    if not ratios:
        return []
    worst = sorted(ratios, key=lambda pair: pair[0], reverse=True)[:MAX_NAMED]
    detail = ", ".join(f"{tensor} {ratio:.3g}" for ratio, tensor in worst)
    beyond = sum(ratio > 1 for ratio, _ in ratios)
    if beyond > 1:
        detail = f"{beyond} of {len(ratios)} tensors are beyond their bounds: {detail}"
    too_exact = [(e, 1) for e in errors if e.too_exact]
    if too_exact and not beyond:
        names = first_few([e.name for e, _ in too_exact], MAX_NAMED, separator=", ")
        detail = (
            f"{len(too_exact)} of {len(ratios)} tensors are nearer to the source than their type "
            f"can be: {names}; are they compared with themselves?"
        )
        return [Check(name, worst[0][0], 1, "<=", Verdict.FAIL, detail)]
    return [at_most(name, worst[0][0], 1, detail)]
