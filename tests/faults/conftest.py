"""One command server and one set of valid inputs for all tests of faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.server import Server
from tests.faults.valid_inputs import ValidInputs


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture(scope="session")
def valid_inputs(tmp_path_factory: pytest.TempPathFactory) -> ValidInputs:
    return ValidInputs(tmp_path_factory.mktemp("valid"))
