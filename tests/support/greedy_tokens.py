"""Greedy generation compared between runs that round differently.

A batch of another size, another number of threads and another processor change the last bits of
logits. Where the two best logits nearly tie, that changes the token, and everything after it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["assert_same_tokens"]


def assert_same_tokens(
    tokens: Sequence[int], expected: Sequence[int], logits: np.ndarray, rounding: float
) -> None:
    """Assert that both runs chose the same tokens, or first differ where two logits nearly tie.

    Args:
        tokens: The tokens of the run under test.
        expected: The tokens of the run it is compared with.
        logits: The logits that `expected` was chosen by, [len(expected), vocabulary].
        rounding: How much two runs' logits may differ.
    """
    assert len(tokens) == len(expected) == len(logits)
    for step, (token, best) in enumerate(zip(tokens, expected, strict=True)):
        if token != best:
            gap = float(logits[step, best] - logits[step, token])
            assert gap <= 2 * rounding, f"step {step}: token {token}, not {best}, {gap:.3g} below"
            return
