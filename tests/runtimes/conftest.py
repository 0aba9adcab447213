"""Checkpoints and models that tests of runtimes share."""

from __future__ import annotations

import pytest

from cgconvert.model.decoder import Checkpoint
from tests.support.onnx_models import GEOMETRIES, Model, make
from tests.support.tampering import checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A small random checkpoint; artefacts are made from it."""
    return checkpoint(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small random model with heads of 64, and its ONNX artefacts."""
    return make(GEOMETRIES[64], tmp_path_factory.mktemp("small"))
