"""How far a searched or calibrated matrix may be from the source's.

A search chooses its scales and GPTQ chooses its codes, so a weight need not have the nearest code.
What can be demanded is this: the error of the tensor, of every row and of every block is at most a
few times the error of the plain search, which rounds every weight to its nearest code; and no row
grows or shrinks.

A calibrated matrix also makes up for the errors of the matrices before it. In a file of several
types those errors may be larger than those of its own type, so there the error of the file's
coarsest type is allowed on top: matrices of 8 bits behind others of 4 were then seen at 0.5 of the
bounds, their gain at 0.7.
"""

from __future__ import annotations

import math

from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.lazy import torch
from cgconvert.model.device import warm_up_mkl
from cgconvert.model.tensor import LazyTensor

__all__ = ["adjustment_over_bound", "is_too_exact", "searched_error_over_bound"]

TENSOR_BOUND, ROW_BOUND, BLOCK_BOUND = 3.0, 4.0, 8.0
"""Bounds of root mean square errors: the tensor's as a multiple of the plain search's error of the
tensor, a row's and a block's as multiples of the plain search's error of the row. Seen in a
calibrated model of Q3_K to Q6_K: 1.9, 2.3, 2.3; in llama-quantize's own file of it 1.07, 1.2, 1.3;
in a calibrated ONNX of 4 bits 1.6, 2.2, 4.4."""

GAIN_BOUND = 0.35
"""How far the gain <q, w> / <w, w> of a row may be from 1, times half the number of codes; q is the
stored row and w the source's. Seen: 0.23, llama-quantize 0.10; a matrix scaled by 1.05 has 0.4 at 4
bits."""

ADJUSTMENT_BOUND = 0.5
"""Bound of the root mean square change of a vector that calibration adjusts, over the vector's own
root mean square. Seen: 0.06; a bias that is dropped has 1, another layer's about 1.4."""


def searched_error_over_bound(
    stored: LazyTensor,
    codec: BlockCodec,
    source: LazyTensor,
    chunk_rows: int,
    coarsest: BlockCodec | None = None,
) -> float:
    """Compute the largest error of a searched or calibrated matrix, as a multiple of its bound.

    Args:
        stored: The stored matrix [rows, columns], decoded as it is read.
        codec: The codec whose plain search gives the errors that the bounds are multiples of.
        source: The source's matrix, of the same shape.
        chunk_rows: How many rows are in memory at once.
        coarsest: The codec with the fewest codes in the file, if the matrix may make up for errors
            of that codec.

    Returns:
        At most 1 if every bound is met; infinite if a weight is not finite, never NaN.
    """
    warm_up_mkl()
    gain_bound = 2 * GAIN_BOUND / (codec.max_code + 1)
    if coarsest is not None and (
        coarsest.max_code >= codec.max_code or stored.shape[1] % coarsest.block_size
    ):
        coarsest = None
    if coarsest is not None:
        gain_bound += 2 * GAIN_BOUND / (coarsest.max_code + 1)
    largest, stored_sum, search_sum = 0.0, 0.0, 0.0
    for first in range(0, stored.shape[0], chunk_rows):
        rows = slice(first, min(first + chunk_rows, stored.shape[0]))
        weights, stored_weights = source.read(rows).float(), stored.read(rows)
        search_error = _search_error(codec, weights)
        if coarsest is not None:
            search_error += _search_error(coarsest, weights)
        error = (stored_weights - weights).square()
        row_search_error = search_error.mean(1)
        block_error = error.unflatten(1, (-1, codec.block_size)).mean(2)
        gain_error = (stored_weights * weights).sum(1) / weights.square().sum(1) - 1
        ratios = (
            (error.mean(1) / row_search_error).sqrt() / ROW_BOUND,
            (block_error / row_search_error[:, None]).sqrt() / BLOCK_BOUND,
            gain_error.abs() / gain_bound,
        )
        # NaN is 0 / 0: an error of 0 of a row that the plain search has exactly, or the gain of a
        # row of zeros. A weight that is not finite makes the sum below infinite or NaN.
        largest = max(largest, *(float(ratio.nan_to_num(0.0, math.inf).max()) for ratio in ratios))
        stored_sum += float(error.double().sum())
        search_sum += float(search_error.double().sum())
        if not math.isfinite(stored_sum):
            return math.inf
    if search_sum:
        return max(largest, math.sqrt(stored_sum / search_sum) / TENSOR_BOUND)
    return max(largest, math.inf if stored_sum > 0 else 0.0)


LEAST_ERROR = 0.05
"""The least squared error of a matrix as a share of the plain search's. GPTQ has more than 1; a
better choice of scales was seen to save a fifth, and half a bit more for every weight three
quarters."""


def is_too_exact(
    stored: LazyTensor, codec: BlockCodec, source: LazyTensor, chunk_rows: int
) -> bool:
    """Whether a stored matrix has a much smaller error than its type leaves.

    A matrix that the type holds exactly, such as zeros, leaves no error in the search either.
    """
    warm_up_mkl()
    stored_sum, search_sum = 0.0, 0.0
    for first in range(0, stored.shape[0], chunk_rows):
        rows = slice(first, min(first + chunk_rows, stored.shape[0]))
        weights = source.read(rows).float()
        stored_sum += float((stored.read(rows) - weights).square().double().sum())
        search_sum += float(_search_error(codec, weights).double().sum())
    return stored_sum < LEAST_ERROR * search_sum


def adjustment_over_bound(stored: LazyTensor, source: LazyTensor) -> float:
    """Compute how far an adjusted vector is from the source's, as a multiple of its bound.

    Infinite if a value is not finite, or if the source's vector is 0 and the stored one is not;
    never NaN.
    """
    stored_values, source_values = stored.read().double(), source.read().double()
    change = (stored_values - source_values).square().sum()
    size = source_values.square().sum()
    if not change.isfinite():
        return math.inf
    if size:
        return float((change / size).sqrt()) / ADJUSTMENT_BOUND
    return math.inf if change > 0 else 0.0


def _search_error(codec: BlockCodec, weights: torch.Tensor) -> torch.Tensor:
    """The squared error of every weight in the plain search, float32 of the shape of `weights`."""
    packed = codec.encode_rows(weights)
    return (codec.decode_rows(packed, weights.shape) - weights).square()
