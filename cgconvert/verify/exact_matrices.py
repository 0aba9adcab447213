"""A quantized artefact run without quantized activations, so that mistakes in the wiring show.

MatMulNBits at accuracy level 4 rounds activations to 8 bits: an NMSE of 3e-5 to 4e-4, which hides a
bias of the wrong layer (1.6e-5 in the embedded model). The same nodes computed in float32 leave as
little noise as any float32 graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from cgconvert.runtimes.runtime import Runtime
from cgconvert.verify.evidence import Evidence
from cgconvert.verify.metrics import measure
from cgconvert.verify.prompts import PROMPTS
from cgconvert.verify.verdict import Check, at_most

__all__ = ["check_exact_matrices"]

BOUNDS: Mapping[str, float] = {"float32": 1e-10, "float16": 5e-6}
"""Bounds by the type of the other activations; float16's is that of an unquantized float16 graph.
Seen in float32: 1.8e-11, of 6B's head with sharp attention (python -m tests.verify.false_alarms
--seeds 2 --heads 8 --vocabulary 6000 --trained)."""


def check_exact_matrices(
    evidence: Evidence, open_exact: Callable[[], Runtime | None]
) -> list[Check]:
    """runtime.graph: NMSE on the prompts, against the reference with the artefact's own weights.

    No check where these weights make no model, or where `open_exact` (see Runtime.open_exact)
    returns None.
    """
    if evidence.stored is None or evidence.observed.logits.shape[1] < evidence.allowed:
        return []
    runtime = open_exact()
    if runtime is None:
        return []
    try:
        parts = []
        for sequence in evidence.observed.sequences[: len(PROMPTS)]:
            runtime.reset()
            parts.append(runtime.feed(sequence))
    finally:
        runtime.close()
    logits = np.concatenate(parts)
    loss = measure(evidence.stored.logits[: len(logits)], logits)
    detail = f"its matrices computed in float32: max |difference| {loss.noise:.3g}"
    return [at_most("runtime.graph", loss.nmse, BOUNDS[runtime.activations], detail)]
