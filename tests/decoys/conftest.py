"""Right artefacts of a model that is verified in a fraction of a second, for decoys."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cgconvert.model.decoder import Checkpoint
from cgconvert.write.plan import Plan
from tests.decoys.decoy import GGUF, HF, ONNX, Decoy
from tests.support.artefacts import copied, write_all
from tests.support.tampering import GEOMETRY, checkpoint

SMALLEST = replace(GEOMETRY, n_layer=1, n_embd=128, rotary_dim=16, n_positions=32)


@pytest.fixture(scope="session")
def decoy_source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return checkpoint(tmp_path_factory.mktemp("source"), SMALLEST)


@pytest.fixture(scope="session")
def right(decoy_source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    return write_all([HF, ONNX, GGUF], decoy_source, tmp_path_factory.mktemp("right"))


@pytest.fixture(scope="session")
def planted(
    right: dict[str, Plan], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Decoy], Path]:
    """A function that plants a decoy in a copy of a right artefact, and returns its path."""
    numbers = itertools.count()
    base = tmp_path_factory.mktemp("planted")

    def plant(decoy: Decoy) -> Path:
        folder = base / str(next(numbers))
        folder.mkdir()
        artefact = copied(right[decoy.kind], folder)
        decoy.plant(artefact)
        return artefact

    return plant
