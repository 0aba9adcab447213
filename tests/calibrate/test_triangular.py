"""The factor of an inverse: right across blocks, and in the memory of one matrix."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from cgconvert.calibrate import triangular
from cgconvert.calibrate.triangular import inverse_factor


@pytest.mark.parametrize("n", [1, 5, 64, 100])
def test_it_is_the_factor(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triangular, "BLOCK", 32)
    x = torch.randn(2 * n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    matrix = x.t() @ x
    before = matrix.clone()
    factor = inverse_factor(matrix)
    assert torch.equal(matrix, before)
    assert torch.equal(factor, factor.triu())
    assert torch.allclose(factor.t() @ factor @ matrix, torch.eye(n).double(), atol=1e-9)


def test_what_is_not_positive_definite_is_told() -> None:
    with pytest.raises(torch.linalg.LinAlgError):
        inverse_factor(-torch.eye(3))


PEAK = """
import torch
from cgconvert.quant import triangular
triangular.BLOCK = 256
def peak():
    return int(next(l for l in open("/proc/self/status") if l[:5] == "VmHWM").split()[1]) << 10
triangular.inverse_factor(torch.eye(300))
matrix = torch.eye(4096)
before = peak()
triangular.inverse_factor(matrix)
print((peak() - before) / matrix.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's account of memory")
def test_memory() -> None:
    told = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert 0.9 < float(told.stdout) < 1.4
