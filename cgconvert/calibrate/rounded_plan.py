"""The plan of an artefact whose weights are rounded without a text, and how long that takes.

It does not import torch: that would take longer than everything else in a dry run.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter

import numpy as np

from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.quantized_tensor import block_codec_of
from cgconvert.write.plan import Plan, worker_count

__all__ = ["RoundedPlan", "duration_range", "rounding_seconds"]

SPREAD = 1.25
"""The factor by which the ends of a range differ from the estimate."""

START_SECONDS, COPY_SECONDS = 2.0, 2e-9
"""The time to start, and the time to read a weight and to write and hash it; this is a small part
of the time to search, and not measured."""

SEARCH_PASSES, ROUNDING_PASSES = 220, 35
"""How many passes over the weights take as long as the search for their parameters, or rounding
them by a rule. Measured in one thread beside numpy's: 160 to 350 by type, and 26 to 41."""

CACHED_NUMBERS = 1 << 16
"""How many numbers numpy passes over; they fit into a core's cache, as the tiles of a search do."""


class RoundedPlan(Plan):
    """The plan of an artefact whose weights are rounded without a text; it estimates the time."""

    def describe(self) -> str:
        """See LazyPlan: the lines of a Plan, and the time on this machine."""
        codecs: Counter[BlockCodec] = Counter()
        weights = 0
        for tensor in self.tensors:
            codec = block_codec_of(tensor.encoding)
            if codec is not None:
                codecs[codec] += tensor.nbytes
                weights += math.prod(tensor.source.shape)
        lines = super().describe()
        if not codecs:
            return lines
        seconds = rounding_seconds(codecs.most_common(1)[0][0], weights)
        return f"{lines}\ntime:  {duration_range(seconds)}, by the speed of this machine"


def rounding_seconds(codec: BlockCodec, weights: int) -> float:
    """Estimate how long it takes to round so many weights without a text, and to write them.

    The speed of this machine is taken from numpy's, in passes over numbers in a core's cache.
    """
    numbers = np.linspace(-1, 1, CACHED_NUMBERS, dtype=np.float32)
    results = np.empty_like(numbers)

    def seconds_of_pass() -> float:
        start = time.perf_counter()
        for _ in range(10):
            np.multiply(numbers, numbers, out=results)
            np.add(results, numbers, out=results)
        return (time.perf_counter() - start) / 20 / CACHED_NUMBERS

    seconds_of_pass()
    pass_seconds = statistics.median(seconds_of_pass() for _ in range(50))
    passes = SEARCH_PASSES if codec.is_searched(has_importance=False) else ROUNDING_PASSES
    return START_SECONDS + weights * (passes * pass_seconds / worker_count() + COPY_SECONDS)


def duration_range(seconds: float) -> str:
    """Write an estimate as a range of durations, such as 8 to 12 min."""
    low, high = seconds / SPREAD, seconds * SPREAD
    if high < 90:
        low, high, unit = _rounded(low), _rounded(high), "s"
    elif high < 5400:
        low, high, unit = max(1, round(low / 60)), max(2, round(high / 60)), "min"
    else:
        low, high, unit = round(low / 3600, 1), round(high / 3600, 1), "h"
    return f"{high:g} {unit}" if low >= high else f"{low:g} to {high:g} {unit}"


def _rounded(seconds: float) -> float:
    """Round seconds to whole ones below 10, and to multiples of 5 above."""
    return max(1, round(seconds)) if seconds < 10 else 5 * round(seconds / 5)
