"""The oldest onnxruntime that each kind of graph is promised to run in.

tests/run.py puts each of those releases before the installed one on the path and runs this file.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from cgconvert.errors import InputError
from cgconvert.formats.onnx.variant import Variant
from cgconvert.runtimes.onnxruntime import OnnxRuntime
from tests.support.onnx_models import GEOMETRIES, VARIANTS, Model, make, relative_error

OLDEST = {"1.22.0": False, "1.23.0": True}
"""Releases, and whether they run quantized graphs: those have GatherBlockQuantized in 8 bits."""

QUANTIZED = {kind for kind, options in VARIANTS.items() if Variant(**options).bits}


def test_the_installed_onnxruntime_is_one_of_the_oldest() -> None:
    assert onnxruntime.__version__ in OLDEST


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make(GEOMETRIES[64], tmp_path_factory.mktemp("oldest"))


def kinds() -> list[str]:
    quantized = OLDEST.get(onnxruntime.__version__, True)
    return [kind for kind in VARIANTS if quantized or kind not in QUANTIZED]


@pytest.mark.parametrize("kind", kinds())
def test_logits_equal_those_of_transformers(model: Model, kind: str) -> None:
    """A prefill, a further chunk and single tokens in one buffer, then a padded batch."""
    variant = Variant(**VARIANTS[kind])
    bound = {None: 1e-5, 8: 0.05, 4: 0.3}[variant.bits]
    if variant.dtype == "float16":
        bound = max(bound, 1e-3)
    runtime = OnnxRuntime.open(model.artefact(kind), "cpu", 1)
    prompts = model.prompts()
    ids = prompts[0]
    pieces = (ids[:20], ids[20:30], *([token] for token in ids[30:]))
    logits = np.concatenate([runtime.feed(piece) for piece in pieces])
    assert relative_error(logits, model.logits(ids)) <= bound
    if variant.has_bias:
        for alone, row in zip(prompts, runtime.batch(prompts), strict=True):
            assert relative_error(row, model.logits(alone)) <= bound


def test_graphs_that_need_a_newer_release_are_refused_in_one_line(model: Model) -> None:
    for kind in sorted(VARIANTS.keys() - set(kinds())):
        with pytest.raises(InputError, match="onnxruntime cannot load it"):
            OnnxRuntime.open(model.artefact(kind), "cpu", 1)
