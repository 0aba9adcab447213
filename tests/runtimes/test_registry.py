"""The table of runtimes."""

from __future__ import annotations

import pytest

from cgconvert.runtimes import RUNTIMES, runtime_class
from cgconvert.runtimes.runtime import Runtime


@pytest.mark.parametrize(
    ("format_", "name"), [(format_, name) for format_, names in RUNTIMES.items() for name in names]
)
def test_every_registered_runtime_loads(format_: str, name: str) -> None:
    runtime = runtime_class(format_, name)
    assert issubclass(runtime, Runtime)
    assert runtime.name == name
    assert runtime.__new__(runtime).version[0].isdigit()
