"""Runtimes opened in the process of a test, for tests that look into one or change a library."""

from __future__ import annotations

from pathlib import Path

import pytest

from cgconvert import runtimes
from cgconvert.runtimes.runtime import Runtime

__all__ = ["open_runtimes_here"]


def open_runtimes_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `open_runtime` open the runtime's class in this process."""

    def open_here(runtime: type[Runtime], path: Path, device: str, threads: int | None) -> Runtime:
        return runtime.open(path, device, threads)

    monkeypatch.setattr(runtimes, "open_class", open_here)
