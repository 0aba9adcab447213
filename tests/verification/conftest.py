"""The checkpoint that tests of verification share."""

from __future__ import annotations

import pytest

from cgconvert.model.decoder import Checkpoint
from tests.support.tampering import checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A small random checkpoint; artefacts are made from it and verified against it."""
    return checkpoint(tmp_path_factory.mktemp("source"))
