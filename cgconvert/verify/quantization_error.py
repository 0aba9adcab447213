"""How far a searched or calibrated matrix may be from the source's.

A search chooses its scales and GPTQ its codes, so no single weight has to be the nearest code's.
What can be demanded: the error of the tensor, of every row and of every block stays within a few
times what the same type reaches when each weight is rounded for itself, and no row grows or
shrinks.

A calibrated matrix also makes up for the errors of the matrices before it. In a file of several
types those errors may be larger than its own type's, so there the error of the file's coarsest type
is allowed on top: seen in matrices of 8 bits behind others of 4 at 0.5 of the bounds, their gain at
0.7.
"""

from __future__ import annotations

import math

import torch

from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.model.device import warm_up_mkl
from cgconvert.model.tensor import LazyTensor

__all__ = ["adjustment", "searched_error"]

TENSOR, ROW, BLOCK = 3.0, 4.0, 8.0
"""Bounds of root mean square errors, as multiples of the plain search's: the tensor's of the
tensor's, a row's and a block's of the row's. Seen in a calibrated model of Q3_K to Q6_K: 1.9, 2.3,
2.3; in llama-quantize's own file of it 1.07, 1.2, 1.3; in a calibrated ONNX of 4 bits 1.6, 2.2,
4.4."""

GAIN = 0.35
"""How far a row's <q, w> / <w, w> may be from 1, times half the number of codes. Seen: 0.23,
llama-quantize 0.10; a matrix scaled by 1.05 has 0.4 at 4 bits."""

ADJUSTMENT = 0.5
"""Bound of the root mean square change of a vector that calibration adjusts, over the vector's own
root mean square. Seen: 0.06; a bias that is dropped has 1, another layer's about 1.4."""


def searched_error(
    stored: LazyTensor,
    codec: BlockCodec,
    source: LazyTensor,
    chunk_rows: int,
    coarsest: BlockCodec | None = None,
) -> float:
    """The largest error of a searched or calibrated matrix, as a multiple of its bound.

    Args:
        stored: the stored matrix [rows, columns], decoded as it is read.
        codec: the codec whose plain search gives the errors that bounds are multiples of.
        source: the source's matrix, of the same shape.
        chunk_rows: rows in memory at once.
        coarsest: the file's type of the fewest codes, whose errors the matrix may make up for.

    Returns:
        At most 1 where every bound is met; infinite where a weight is not finite.
    """
    warm_up_mkl()
    gain_bound = 2 * GAIN / (codec.max_code + 1)
    if coarsest is not None and (
        coarsest.max_code >= codec.max_code or stored.shape[1] % coarsest.block_size
    ):
        coarsest = None
    if coarsest is not None:
        gain_bound += 2 * GAIN / (coarsest.max_code + 1)
    largest, stored_sum, search_sum = 0.0, 0.0, 0.0
    for first in range(0, stored.shape[0], chunk_rows):
        rows = slice(first, min(first + chunk_rows, stored.shape[0]))
        weights, values = source.read(rows).float(), stored.read(rows)
        search_error = _search_error(codec, weights)
        if coarsest is not None:
            search_error += _search_error(coarsest, weights)
        error = (values - weights).square()
        search_row = search_error.mean(1)
        blocks = error.unflatten(1, (-1, codec.block_size)).mean(2)
        gain = (values * weights).sum(1) / weights.square().sum(1) - 1
        ratios = (
            (error.mean(1) / search_row).sqrt() / ROW,
            (blocks / search_row[:, None]).sqrt() / BLOCK,
            gain.abs().nan_to_num(0.0) / gain_bound,
        )
        largest = max(largest, *(float(_zero_if_nan(ratio).max()) for ratio in ratios))
        stored_sum += float(error.double().sum())
        search_sum += float(search_error.double().sum())
        if not math.isfinite(stored_sum):
            return math.inf
    if search_sum:
        return max(largest, math.sqrt(stored_sum / search_sum) / TENSOR)
    return max(largest, math.inf if stored_sum > 0 else 0.0)


def adjustment(stored: LazyTensor, source: LazyTensor) -> float:
    """How far an adjusted vector is from the source's, as a multiple of its bound."""
    values, numbers = stored.read().double(), source.read().double()
    change, size = (values - numbers).square().sum(), numbers.square().sum()
    if not change.isfinite():
        return math.inf
    if size:
        return float((change / size).sqrt()) / ADJUSTMENT
    return math.inf if change > 0 else 0.0


def _search_error(codec: BlockCodec, weights: torch.Tensor) -> torch.Tensor:
    """Squared errors of the plain search, float32 of the shape of `weights`."""
    packed = codec.encode_rows(weights)
    return (codec.decode_rows(packed, weights.shape) - weights).square()


def _zero_if_nan(ratios: torch.Tensor) -> torch.Tensor:
    """0 / 0 means a row that both have exactly."""
    return ratios.nan_to_num(nan=0.0, posinf=math.inf)
