"""The model that tests of ONNX share."""

from __future__ import annotations

import pytest

from tests.support.onnx_models import GEOMETRIES, Model, make


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small random model with heads of 64, and its ONNX artefacts."""
    return make(GEOMETRIES[64], tmp_path_factory.mktemp("small"))
