"""GPTQ and coordinate descent, compared with plain rounding; and the factor of an inverse."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from cgconvert.calibrate import gptq
from cgconvert.calibrate.gptq import Hessian, inverse_cholesky, quantize_matrix
from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.ggml import ENCODINGS
from cgconvert.errors import InputError

TYPES = [name for name, encoding in ENCODINGS.items() if isinstance(encoding, BlockCodec)]


def codec(name: str) -> BlockCodec:
    encoding = ENCODINGS[name]
    assert isinstance(encoding, BlockCodec)
    return encoding


def case(rows: int = 64, columns: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix, and second moments of inputs that correlate as a model's do."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(4096, columns, generator=generator) @ (torch.eye(columns) + 2 * mixing)
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    return weight, (inputs.t() @ inputs).double()


def error(weight: torch.Tensor, coded: torch.Tensor, type_: str, moments: torch.Tensor) -> float:
    difference = (weight - codec(type_).decode_rows(coded, weight.shape)).double()
    return float(((difference @ moments) * difference).sum())


@pytest.mark.parametrize("type_", TYPES)
def test_gptq_loses_less_than_rounding(type_: str) -> None:
    weight, moments = case()
    coded = quantize_matrix(weight, Hessian.from_moments(moments), codec(type_))
    (plain,) = codec(type_).encode(weight)
    assert coded.shape == plain.shape
    assert coded.dtype == torch.uint8
    assert error(weight, coded, type_, moments) < 0.75 * error(weight, plain, type_, moments)


def test_each_sweep_of_coordinate_descent_lowers_the_error() -> None:
    weight, moments = case()
    errors = [
        error(
            weight,
            quantize_matrix(weight, Hessian.from_moments(moments), codec("Q4_K"), sweeps=n),
            "Q4_K",
            moments,
        )
        for n in (0, 1, 2)
    ]
    assert errors[2] < errors[1] < errors[0]


def test_uncorrelated_inputs_leave_nothing_to_gain() -> None:
    weight, _ = case()
    moments = torch.eye(weight.shape[1], dtype=torch.float64)
    coded = quantize_matrix(weight, Hessian.from_moments(moments), codec("Q4_K"))
    (plain,) = codec("Q4_K").encode(weight)
    assert error(weight, coded, "Q4_K", moments) == pytest.approx(
        error(weight, plain, "Q4_K", moments), rel=0.02
    )


def test_rows_are_independent() -> None:
    weight, moments = case()
    hessian = Hessian.from_moments(moments)
    whole = quantize_matrix(weight, hessian, codec("Q5_K"))
    first_rows = codec("Q5_K").decode_rows(
        quantize_matrix(weight[:7], hessian, codec("Q5_K")), (7, 512)
    )
    # Sums over other numbers of rows may round a near tie otherwise.
    same = (codec("Q5_K").decode_rows(whole, weight.shape)[:7] == first_rows).float().mean()
    assert same > 0.99


def test_inputs_that_are_always_zero_and_rows_of_zeros() -> None:
    weight, moments = case()
    weight[3] = 0
    moments[:, 100:140] = moments[100:140] = 0
    coded = quantize_matrix(weight, Hessian.from_moments(moments), codec("Q4_K"))
    values = codec("Q4_K").decode_rows(coded, weight.shape)
    assert values.isfinite().all()
    assert not values[3].any()
    assert (values - weight)[:, 100:140].abs().max() < 0.03


def test_weights_that_are_not_finite_are_refused() -> None:
    weight, moments = case()
    weight[2, 5] = torch.inf
    with pytest.raises(InputError, match="is NaN, infinite"):
        quantize_matrix(weight, Hessian.from_moments(moments), codec("Q4_K"))


@pytest.mark.parametrize("n", [1, 5, 64, 100])
def test_inverse_cholesky_across_blocks(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "FACTOR_BLOCK", 32)
    x = torch.randn(2 * n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    matrix = x.t() @ x
    before = matrix.clone()
    factor = inverse_cholesky(matrix)
    assert torch.equal(matrix, before)
    assert torch.equal(factor, factor.triu())
    assert torch.allclose(factor.t() @ factor @ matrix, torch.eye(n).double(), atol=1e-9)


def test_inverse_cholesky_of_an_indefinite_matrix_is_refused() -> None:
    with pytest.raises(torch.linalg.LinAlgError):  # type: ignore[attr-defined]  # not in its stubs
        inverse_cholesky(-torch.eye(3))


PEAK = """
import torch
from cgconvert.calibrate import gptq
gptq.FACTOR_BLOCK = 256
def peak():
    return int(next(l for l in open("/proc/self/status") if l[:5] == "VmHWM").split()[1]) << 10
gptq.inverse_cholesky(torch.eye(300))
matrix = torch.eye(4096)
before = peak()
gptq.inverse_cholesky(matrix)
print((peak() - before) / matrix.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_inverse_cholesky_needs_the_memory_of_one_matrix() -> None:
    process = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, check=True
    )
    assert 0.9 < float(process.stdout) < 1.4
