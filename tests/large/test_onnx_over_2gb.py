"""A graph with more data than the 2 GB a protobuf message may have: built, checked, loaded, run.

It takes a minute, 4 GB of disk and 6 GB of memory, so it is started by hand:
`python -m pytest tests/large --override-ini norecursedirs=.*`
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from cgconvert.model import family
from cgconvert.runtimes.genai import GenaiRuntime
from cgconvert.runtimes.onnxruntime import OnnxRuntime
from tests.support.onnx_models import make, relative_error


def test_2b_with_4_layers(tmp_path: Path) -> None:
    """2B's width, head size and vocabulary; a layer has 315 MB, embedding and head 1.05 GB."""
    model = make(replace(family.SIZES["2B"], n_layer=4), tmp_path)
    ids = model.prompts()[1]
    expected = model.logits(ids)
    del model.theirs
    graph = model.graph("model")
    data = graph.with_suffix(".onnx_data").stat().st_size
    assert 2**31 < data < 2**31 * 1.1
    assert graph.stat().st_size < 100_000
    onnx.checker.check_model(str(graph), full_check=True)
    for kind in (OnnxRuntime, GenaiRuntime):
        runtime = kind.open(model.artefact("model"), "cpu", 1)
        logits = np.concatenate([runtime.feed(ids[:-2]), *(runtime.feed([i]) for i in ids[-2:])])
        assert relative_error(logits, expected) <= 1e-5
        runtime.close()
        del runtime
