"""Rounding with error feedback against the plain search, under the objective it is made for."""

from __future__ import annotations

import pytest
import torch

from cgconvert.calibrate.gptq import Hessian, quantize
from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.errors import InputError
from cgconvert.formats.gguf.types import ENCODINGS

TYPES = [name for name, encoding in ENCODINGS.items() if isinstance(encoding, BlockCodec)]


def codec(name: str) -> BlockCodec:
    encoding = ENCODINGS[name]
    assert isinstance(encoding, BlockCodec)
    return encoding


def case(rows: int = 64, columns: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix, and moments of inputs that go together as a model's do."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(4096, columns, generator=generator) @ (torch.eye(columns) + 2 * mixing)
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    return weight, (inputs.t() @ inputs).double()


def error(weight: torch.Tensor, coded: torch.Tensor, type_: str, moments: torch.Tensor) -> float:
    left = (weight - codec(type_).decode(coded, weight.shape)).double()
    return float(((left @ moments) * left).sum())


@pytest.mark.parametrize("type_", TYPES)
def test_less_is_lost_than_by_the_search_alone(type_: str) -> None:
    weight, moments = case()
    coded = quantize(weight, Hessian.of(moments), codec(type_))
    (plain,) = codec(type_).encode(weight)
    assert coded.shape == plain.shape
    assert coded.dtype == torch.uint8
    assert error(weight, coded, type_, moments) < 0.75 * error(weight, plain, type_, moments)


def test_sweeps_gain_on_feedback_alone() -> None:
    weight, moments = case()
    found = [
        error(
            weight, quantize(weight, Hessian.of(moments), codec("Q4_K"), sweeps=n), "Q4_K", moments
        )
        for n in (0, 1, 2)
    ]
    assert found[2] < found[1] < found[0]


def test_inputs_that_do_not_go_together_leave_nothing_to_gain() -> None:
    weight, _ = case()
    moments = torch.eye(weight.shape[1], dtype=torch.float64)
    coded = quantize(weight, Hessian.of(moments), codec("Q4_K"))
    (plain,) = codec("Q4_K").encode(weight)
    assert error(weight, coded, "Q4_K", moments) == pytest.approx(
        error(weight, plain, "Q4_K", moments), rel=0.02
    )


def test_rows_do_not_depend_on_one_another() -> None:
    weight, moments = case()
    hessian = Hessian.of(moments)
    whole = quantize(weight, hessian, codec("Q5_K"))
    some = codec("Q5_K").decode(quantize(weight[:7], hessian, codec("Q5_K")), (7, 512))
    # Sums over other numbers of rows may round a near tie otherwise.
    same = (codec("Q5_K").decode(whole, weight.shape)[:7] == some).float().mean()
    assert same > 0.99


def test_inputs_that_never_came_and_rows_of_zeros() -> None:
    weight, moments = case()
    weight[3] = 0
    moments[:, 100:140] = moments[100:140] = 0
    coded = quantize(weight, Hessian.of(moments), codec("Q4_K"))
    values = codec("Q4_K").decode(coded, weight.shape)
    assert values.isfinite().all()
    assert not values[3].any()
    assert (values - weight)[:, 100:140].abs().max() < 0.03


def test_weights_that_are_not_finite() -> None:
    weight, moments = case()
    weight[2, 5] = torch.inf
    with pytest.raises(InputError, match="is NaN, infinite"):
        quantize(weight, Hessian.of(moments), codec("Q4_K"))
