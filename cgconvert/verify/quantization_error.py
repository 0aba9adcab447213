"""How far a searched or calibrated matrix may be from the source's.

A search chooses its scales and error feedback its codes, so no single weight has to be the nearest
code's. What is left: the error as a whole, of every row and of every block stays within a few times
what the same type reaches when each weight is rounded for itself, and no row grows or shrinks.

A calibrated matrix also makes up for the errors of those before it, in a file of several types for
larger ones than its own type's. There it may be as much further away as the file's coarsest type
is: seen in matrices of 8 bits behind others of 4 at 0.5 of the bounds, their gain at 0.7.
"""

from __future__ import annotations

import math

import torch

from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.model.device import warm_up_mkl
from cgconvert.model.tensor import LazyTensor

__all__ = ["adjustment", "searched_error"]

TENSOR, ROW, BLOCK = 3.0, 4.0, 8.0
"""Root mean square errors, as multiples of the plain search's: the tensor's of the tensor's, a
row's and a block's of the row's. Seen in a calibrated model of Q3_K to Q6_K: 1.9, 2.3, 2.3; in
llama-quantize's own file of it 1.07, 1.2, 1.3; in a calibrated ONNX of 4 bits 1.6, 2.2, 4.4."""

GAIN = 0.35
"""A row's <q, w> / <w, w> may leave 1 by this, divided by half the number of codes. Seen: 0.23,
llama-quantize 0.10; a matrix scaled by 1.05 has 0.4 at 4 bits."""

ADJUSTMENT = 0.5
"""Root mean square change of a vector that calibration adjusts, over that of the vector. Seen:
0.06; a bias that is dropped has 1, another layer's about 1.4."""


def searched_error(
    found: LazyTensor,
    codec: BlockCodec,
    wanted: LazyTensor,
    step: int,
    coarsest: BlockCodec | None = None,
) -> float:
    """The worst of all, as a multiple of its bound; infinite where a weight is not finite.

    `step` rows are taken at a time. `coarsest` is the type whose errors it may make up for.
    """
    warm_up_mkl()
    size, allowed = codec.block_size, 2 * GAIN / (codec.top + 1)
    if coarsest is not None and (coarsest.top >= codec.top or found.shape[1] % coarsest.block_size):
        coarsest = None
    if coarsest is not None:
        allowed += 2 * GAIN / (coarsest.top + 1)
    worst, ours, plain = 0.0, 0.0, 0.0
    for first in range(0, found.shape[0], step):
        rows = slice(first, min(first + step, found.shape[0]))
        source, values = wanted.read(rows).float(), found.read(rows)
        theirs = _rounding(codec, source)
        if coarsest is not None:
            theirs += _rounding(coarsest, source)
        error = (values - source).square()
        row = theirs.mean(1)
        blocks = error.unflatten(1, (-1, size)).mean(2)
        gain = ((values * source).sum(1) / source.square().sum(1) - 1).abs().nan_to_num(0.0)
        ratios = (
            (error.mean(1) / row).sqrt() / ROW,
            (blocks / row[:, None]).sqrt() / BLOCK,
            gain / allowed,
        )
        worst = max(worst, *(float(_ratio(r).max()) for r in ratios))
        ours, plain = ours + float(error.double().sum()), plain + float(theirs.double().sum())
        if not math.isfinite(ours):
            return math.inf
    whole = math.sqrt(ours / plain) / TENSOR if plain else float(ours > 0) * math.inf
    return max(worst, whole)


def adjustment(found: LazyTensor, wanted: LazyTensor) -> float:
    """How far an adjusted vector is from the source's, as a multiple of its bound."""
    values, source = found.read().double(), wanted.read().double()
    change, size = (values - source).square().sum(), source.square().sum()
    if not change.isfinite():
        return math.inf
    return float((change / size).sqrt()) / ADJUSTMENT if size else float(change > 0) * math.inf


def _rounding(codec: BlockCodec, source: torch.Tensor) -> torch.Tensor:
    """Squared errors of the plain search, float32 of the shape of `source`."""
    (coded,) = codec.encode(source)
    return (codec.decode(coded, source.shape) - source).square()


def _ratio(values: torch.Tensor) -> torch.Tensor:
    """0 / 0 is a row that both have exactly."""
    return values.nan_to_num(nan=0.0, posinf=math.inf)
