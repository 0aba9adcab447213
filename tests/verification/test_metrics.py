"""Measures of distance on numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cgconvert.verification import metrics
from tests.support.logit_distances import compare


def logits(*rows: list[float]) -> np.ndarray:
    """Logits whose softmax is the rows given."""
    values: np.ndarray = np.log(np.array(rows)).astype(np.float32)
    return values


def test_kl_of_two_coins() -> None:
    # 0.5 ln(0.5 / 0.25) + 0.5 ln(0.5 / 0.75) = 0.5 ln 2 + 0.5 ln(2/3) = 0.5 ln(4/3)
    measured = compare(logits([0.5, 0.5]), logits([0.25, 0.75])).kl
    assert measured == pytest.approx([0.5 * math.log(4 / 3)], rel=1e-6)


def test_kl_is_the_references_average_and_shifts_do_not_count() -> None:
    # 0.25 ln(0.25 / 0.5) + 0.75 ln(0.75 / 0.5) = 0.75 ln 3 - ln 2
    reference, candidate = logits([0.25, 0.75]), logits([0.5, 0.5])
    expected = 0.75 * math.log(3) - math.log(2)
    assert compare(reference, candidate + 7).kl == pytest.approx([expected], rel=1e-5)


def test_ids_that_are_not_kept_count_as_one() -> None:
    # Kept: 0.5 and 0.3; the rest 0.2 against 0.1, however it lies within.
    reference, candidate = logits([0.3, 0.15, 0.5, 0.05]), logits([0.4, 0.02, 0.5, 0.08])
    kept = 0.3 * math.log(0.3 / 0.4) + 0.2 * math.log(0.2 / 0.1)
    whole = 0.3 * math.log(3 / 4) + 0.15 * math.log(7.5) + 0.05 * math.log(5 / 8)
    assert compare(reference, candidate, top=2).kl == pytest.approx([kept], rel=1e-5)
    assert compare(reference, candidate).kl == pytest.approx([whole], rel=1e-5)
    assert kept < whole


def test_kl_of_itself_is_nothing() -> None:
    reference = np.random.default_rng(0).normal(size=(5, 1000)).astype(np.float32) * 8
    assert np.abs(compare(reference, reference).kl).max() < 1e-14


def test_relative_error_nmse_and_max_difference_by_hand() -> None:
    reference, candidate = np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[3.0, 4.0], [1.0, -2.0]])
    measured = compare(reference, candidate)
    assert measured.max_difference == 2
    assert measured.relative_error == metrics.relative_error(reference, candidate) == 2 / 4
    assert measured.nmse == (1 + 4) / (9 + 16)


def test_a_reference_of_zeros_gives_zero_or_infinity() -> None:
    zeros = np.zeros((1, 2))
    assert compare(zeros, zeros).relative_error == compare(zeros, zeros).nmse == 0
    assert compare(zeros, zeros + 1).nmse == math.inf


def test_top1_and_top5_count_equal_best_ids() -> None:
    reference = np.array([[6.0, 5, 4, 3, 2, 1, 0], [0.0, 1, 2, 3, 4, 5, 6]])
    candidate = np.array([[6.0, 5, 4, 3, 0, 0, 9], [0.0, 1, 2, 3, 4, 5, 6]])
    measured = compare(reference, candidate)
    assert measured.top1 == 1 / 2
    assert measured.top5 == pytest.approx((4 / 5 + 1) / 2)
    assert compare(reference[:, :3], candidate[:, :3]).top5 == 1  # no more than there are


def test_top1_sure_counts_positions_where_the_reference_is_sure() -> None:
    reference = logits([0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1])
    candidate = logits([0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.8, 0.1, 0.1])
    measured = compare(reference, candidate)
    assert (measured.sure_positions, measured.top1_sure, measured.top1) == (2, 1 / 2, 1 / 3)
    unsure = compare(reference[1:2], candidate[1:2])
    assert (unsure.sure_positions, unsure.top1_sure) == (0, None)


def test_perplexity_ratio_and_its_error() -> None:
    # Next tokens 1, 0 then none. Reference gives them 0.5 and 0.5, the candidate 0.25 and 0.4:
    # d = ln 2, ln 1.25; ratio = sqrt(2.5); error = ratio * std(d) / sqrt(2).
    reference = logits([0.5, 0.5], [0.5, 0.5], [0.9, 0.1])
    candidate = logits([0.75, 0.25], [0.4, 0.6], [0.1, 0.9])
    for top in (1, 2):  # the next token's logit is kept whether it is among the best or not
        measured = compare(reference, candidate, [0, 1, 0], top=top)
        assert measured.perplexity_ratio == pytest.approx(math.sqrt(2.5), rel=1e-6)
        assert measured.perplexity_ratio is not None
        spread = abs(math.log(2) - math.log(1.25)) / math.sqrt(2)
        error = measured.perplexity_ratio * spread / math.sqrt(2)
        assert measured.perplexity_error == pytest.approx(error, rel=1e-5)


def test_sequences_do_not_predict_one_another() -> None:
    reference = logits([0.5, 0.5], [0.9, 0.1], [0.5, 0.5], [0.9, 0.1])
    candidate = logits([0.25, 0.75], [0.1, 0.9], [0.25, 0.75], [0.1, 0.9])
    measured = compare(reference, candidate, [1, 0], [1, 0])
    assert measured.perplexity_ratio == pytest.approx(2, rel=1e-6)
    assert measured.perplexity_error == pytest.approx(0, abs=1e-6)


def test_one_token_has_no_perplexity() -> None:
    assert compare(logits([1.0, 1.0]), logits([1.0, 1.0]), [0]).perplexity_ratio is None


def test_chunks_of_positions_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    reference = random.normal(size=(20, 9)).astype(np.float32)
    candidate = reference + random.normal(size=(20, 9)) * 0.1
    sequences = [random.integers(0, 9, 13).tolist(), random.integers(0, 9, 7).tolist()]
    whole = compare(reference, candidate, *sequences)
    monkeypatch.setattr(metrics, "POSITIONS_PER_CHUNK", 3)
    parts = compare(reference, candidate, *sequences)
    # A sum over fewer rows may round its last bit otherwise; all is float64 here.
    assert whole.kl == pytest.approx(parts.kl, rel=1e-9)
    assert whole.kl_mean == pytest.approx(parts.kl_mean, rel=1e-9)
    assert (whole.top1, whole.top5) == (parts.top1, parts.top5)
    assert whole.nmse == pytest.approx(parts.nmse)
    assert whole.perplexity_ratio == pytest.approx(parts.perplexity_ratio)
    assert whole.kl_p99 == pytest.approx(np.sort(whole.kl)[-2:] @ [0.19, 0.81])  # 0.99 * 19 = 18.81


@pytest.mark.parametrize("shape", [(3, 4), (2, 3)])
def test_other_positions_or_too_few_ids_are_no_comparison(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="2 positions"):
        compare(np.zeros((2, 4)), np.zeros(shape))


@pytest.mark.parametrize("top", [1, 3])
def test_nan_and_infinite_logits_fail_every_bound(top: int) -> None:
    reference = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    for bad in (np.nan, np.inf):
        candidate = reference.copy()
        candidate[1, 2] = bad  # among those that are kept, or not
        measured = compare(reference, candidate, [0, 1], top=top)
        assert not measured.kl_mean <= 1
        assert top == 1 or not measured.nmse <= 1
        assert top == 1 or not measured.max_difference <= 1
