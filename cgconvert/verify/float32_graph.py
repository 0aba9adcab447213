"""A quantized ONNX graph without the noise of its activations.

MatMulNBits at accuracy level 4 rounds activations to 8 bits: an NMSE of 3e-5 to 4e-4, under which
a bias of the wrong layer (1.6e-5 in the embedded model) is not seen. The same nodes told to compute
in float32 leave what any float32 graph leaves, so every mistake in the wiring shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx import TensorProto

from cgconvert.formats.onnx.format import Onnx
from cgconvert.formats.onnx.reader import find_graph, parse
from cgconvert.runtimes.onnxruntime import OnnxRuntime
from cgconvert.verify.evidence import Evidence
from cgconvert.verify.metrics import measure
from cgconvert.verify.prompts import PROMPTS
from cgconvert.verify.verdict import Check, at_most

__all__ = ["check_graph"]

BOUNDS: Mapping[int, float | None] = {
    TensorProto.FLOAT: 1e-10,
    TensorProto.FLOAT16: Onnx.thresholds["float16"].bounds()["runtime.nmse"],
}
"""By the type of a graph's other activations. Seen in float32: 1.8e-11, of 6B's head with sharp
attention (python -m tests.verify.false_alarms --seeds 2 --heads 8 --vocabulary 6000 --trained)."""


def check_graph(artefact: Path, evidence: Evidence, threads: int | None = None) -> list[Check]:
    """runtime.graph: NMSE on the prompts, of the graph in float32 against its stored weights.

    Nothing where those make no model.
    """
    if evidence.stored is None or evidence.observed.logits.shape[1] < evidence.allowed:
        return []
    runtime = OnnxRuntime.open(artefact, "cpu", threads, exact=True)
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
    return [at_most("runtime.graph", loss.nmse, BOUNDS[_type(artefact)], detail)]


def _type(artefact: Path) -> int:
    """Of the cache, and so of all that is not a matrix: OnnxRuntime has seen that it is a float."""
    inputs = parse(find_graph(artefact)).graph.input
    past = next(value for value in inputs if value.name.startswith("past_"))
    return int(past.type.tensor_type.elem_type)
