"""One server and one set of sound inputs for all tests of faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.server import Server
from tests.faults.sound import Sound


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    return Sound(tmp_path_factory.mktemp("sound"))
