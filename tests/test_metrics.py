"""Measures of distance on numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cgconvert.verify import metrics


def logits(*rows: list[float]) -> np.ndarray:
    """Logits whose softmax is the rows given."""
    return np.log(np.array(rows)).astype(np.float32)


def test_kl_of_two_coins() -> None:
    # 0.5 ln(0.5 / 0.25) + 0.5 ln(0.5 / 0.75) = 0.5 ln 2 + 0.5 ln(2/3) = 0.5 ln(4/3)
    found = metrics.kl_divergence(logits([0.5, 0.5]), logits([0.25, 0.75]))
    assert found == pytest.approx([0.5 * math.log(4 / 3)], rel=1e-6)


def test_kl_is_the_references_average_and_shifts_do_not_count() -> None:
    # 0.25 ln(0.25 / 0.5) + 0.75 ln(0.75 / 0.5) = 0.75 ln 3 - ln 2
    base, other = logits([0.25, 0.75]), logits([0.5, 0.5])
    expected = 0.75 * math.log(3) - math.log(2)
    assert metrics.kl_divergence(base, other + 7) == pytest.approx([expected], rel=1e-5)


def test_relative_error_nmse_and_noise() -> None:
    base, other = np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[3.0, 4.0], [1.0, -2.0]])
    assert metrics.noise(base, other) == 2
    assert metrics.relative_error(base, other) == 2 / 4
    assert metrics.nmse(base, other) == (1 + 4) / (9 + 16)


def test_against_nothing_but_zeros() -> None:
    zeros = np.zeros((1, 2))
    assert metrics.relative_error(zeros, zeros) == metrics.nmse(zeros, zeros) == 0
    assert metrics.nmse(zeros, zeros + 1) == math.inf


def test_top_k_agreement_counts_common_ids() -> None:
    base = np.array([[5.0, 4.0, 3.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
    other = np.array([[5.0, 1.0, 4.0, 0.0], [9.0, 2.0, 3.0, 4.0]])
    assert metrics.top_k_agreement(base, other, 1) == 1 / 2  # 0 and 0; 3 and 0
    assert metrics.top_k_agreement(base, other, 2) == 1 / 2  # {0,1} {0,2}; {3,2} {0,3}
    assert metrics.top_k_agreement(base, other, 9) == 1  # no more than there are


def test_perplexity_ratio_and_its_error() -> None:
    # Next tokens 1, 0 then none. Reference gives them 0.5 and 0.5, the candidate 0.25 and 0.4:
    # d = ln 2, ln 1.25; ratio = sqrt(2.5); error = ratio * std(d) / sqrt(2).
    base = logits([0.5, 0.5], [0.5, 0.5], [0.9, 0.1])
    other = logits([0.75, 0.25], [0.4, 0.6], [0.1, 0.9])
    ratio, error = metrics.perplexity_ratio(base, other, [[0, 1, 0]])
    assert ratio == pytest.approx(math.sqrt(2.5), rel=1e-6)
    spread = abs(math.log(2) - math.log(1.25)) / math.sqrt(2)
    assert error == pytest.approx(ratio * spread / math.sqrt(2), rel=1e-5)


def test_sequences_do_not_predict_one_another() -> None:
    base = logits([0.5, 0.5], [0.9, 0.1], [0.5, 0.5], [0.9, 0.1])
    other = logits([0.25, 0.75], [0.1, 0.9], [0.25, 0.75], [0.1, 0.9])
    ratio, error = metrics.perplexity_ratio(base, other, [[1, 0], [1, 0]])
    assert (ratio, error) == (pytest.approx(2, rel=1e-6), pytest.approx(0, abs=1e-6))


def test_one_token_has_no_perplexity() -> None:
    assert np.isnan(metrics.perplexity_ratio(logits([1.0, 1.0]), logits([1.0, 1.0]), [[0]])).all()


def test_chunks_of_positions_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    base = random.normal(size=(20, 9))
    other = base + random.normal(size=(20, 9)) * 0.1
    sequences = [random.integers(0, 9, 13).tolist(), random.integers(0, 9, 7).tolist()]
    whole = metrics.measure(base, other, sequences)
    monkeypatch.setattr(metrics, "ROWS", 3)
    parts = metrics.measure(base, other, sequences)
    assert np.array_equal(whole.kl, parts.kl)
    assert (whole.kl_mean, whole.top1, whole.top5) == (parts.kl_mean, parts.top1, parts.top5)
    assert whole.nmse == pytest.approx(parts.nmse)
    assert whole.perplexity_ratio == pytest.approx(parts.perplexity_ratio)
    assert whole.kl_p99 == pytest.approx(np.sort(whole.kl)[-2:] @ [0.19, 0.81])  # 0.99 * 19 = 18.81


def test_nan_and_infinity_come_through() -> None:
    base = np.zeros((2, 3))
    for bad in (np.nan, np.inf, -np.inf):
        other = base.copy()
        other[1, 2] = bad
        loss = metrics.measure(base, other, [[0, 1]])
        assert not loss.kl_mean <= 1
        assert not loss.nmse <= 1
        assert not loss.noise <= 1


def test_top_two_among_the_allowed() -> None:
    found = metrics.top_two(np.array([[1.0, 3.0, 3.0, 9.0], [4.0, 1.0, 2.0, 0.0]]), allowed=3)
    assert found.ids.tolist() == [1, 0]
    assert found.margins.tolist() == [0, 2]
    assert metrics.top_two(np.array([[1.0, 2.0]]), allowed=1).margins.tolist() == [math.inf]
