"""The number of threads is torch's, before torch is imported too."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from cgconvert.io.system.threads import thread_count

BEFORE_AND_AFTER = """
import sys
from cgconvert.io.system.threads import thread_count
before = thread_count()
assert "torch" not in sys.modules
import torch
print(before, torch.get_num_threads(), thread_count())
"""


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_the_environment_says_it_without_torch(variable: str) -> None:
    environment = {name: value for name, value in os.environ.items() if "_NUM_THREADS" not in name}
    finished = subprocess.run(
        [sys.executable, "-c", BEFORE_AND_AFTER],
        env=environment | {variable: "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert finished.stdout.split() == ["1", "1", "1"]


def test_it_is_torchs_where_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert thread_count() == 7


def test_without_a_wish_it_is_at_most_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    assert 1 <= thread_count() <= (os.cpu_count() or 1)
