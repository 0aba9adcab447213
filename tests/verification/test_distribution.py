"""What is kept of a reference's logits, and how it is kept on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cgconvert.io.cache import cache_folder
from cgconvert.model.tensor import InMemoryTensor
from cgconvert.model.tensor_names import CODEGEN
from cgconvert.testing.synthetic import RandomState
from cgconvert.verification.metrics import ARRAYS, Distribution
from cgconvert.verification.reference import CachedReference, Reference
from tests.conftest import SMALL


def test_the_best_come_first_and_the_lowest_id_of_equals() -> None:
    logits = np.array([[1.0, 3.0, 3.0, 9.0], [4.0, 1.0, 2.0, 0.0]], dtype=np.float32)
    distribution = Distribution.of(logits, [2, -1], tokenizer_size=3, top=2)
    assert distribution.ids.tolist() == [[1, 2], [0, 2]]
    assert distribution.logits.tolist() == [[3, 3], [4, 2]]
    assert distribution.margins.tolist() == [0, 2]
    assert distribution.rest == pytest.approx([1, 1])
    assert distribution.padding_logits.tolist() == [9, 0]
    assert (distribution.next_ids.tolist(), distribution.next_logits[0]) == ([2, -1], 3)
    assert np.isnan(distribution.next_logits[1])
    assert distribution.log_normalizer == pytest.approx(np.log(np.exp(logits[:, :3]).sum(-1)))


def test_a_small_vocabulary_is_kept_whole() -> None:
    distribution = Distribution.of(np.zeros((2, 1), dtype=np.float32), [7, -1], tokenizer_size=1)
    assert distribution.rest.tolist() == [-np.inf, -np.inf]
    assert distribution.margins.tolist() == [np.inf, np.inf]
    assert distribution.padding_logits.tolist() == [-np.inf, -np.inf]
    assert distribution.next_ids.tolist() == [-1, -1]  # 7 is no token of the tokenizer


def test_parts_join_to_the_whole() -> None:
    logits = np.random.default_rng(0).normal(size=(6, 20)).astype(np.float32)
    whole = Distribution.of(logits, [1, 2, 3, 4, 5, -1], tokenizer_size=18, top=4)
    again = Distribution.joined([whole[:2], whole[2:]])
    assert len(whole[1:3]) == 2
    assert all(equal(whole, again, name) for name in ARRAYS)


def equal(left: Distribution, right: Distribution, name: str) -> bool:
    return np.array_equal(getattr(left, name), getattr(right, name), equal_nan=True)


def reference(seed: int = 1, **options: object) -> Reference:
    tensors = {name: InMemoryTensor(t) for name, t in RandomState(SMALL, seed=seed).items()}
    return Reference(CODEGEN.decoder(SMALL, tensors, "test"), **options)  # type: ignore[arg-type]


ROUNDING = 1e-4
"""Largest difference of a logit (standard deviation 0.3) between batches of different sizes.

A matrix product adds up in another order for another number of rows, which changes the last bits
on some processors. Those of two positions differ by about 0.5.
"""


def assert_same_but_for_rounding(left: Distribution, right: Distribution) -> None:
    """The same tokens and probabilities; only ids whose logits nearly tie may change places."""
    assert left.next_ids.tolist() == right.next_ids.tolist()
    for name in ("logits", "rest", "next_logits", "padding_logits", "log_normalizer"):
        values = getattr(right, name)
        assert getattr(left, name) == pytest.approx(values, abs=ROUNDING, nan_ok=True), name
    for position in range(len(right)):
        kept, expected = (
            dict(zip(d.ids[position].tolist(), d.logits[position].tolist(), strict=True))
            for d in (left, right)
        )
        last = min(expected.values())
        for token in kept.keys() | expected.keys():
            logit = expected.get(token, last)  # one may be kept here and another, as good, there
            assert kept.get(token, last) == pytest.approx(logit, abs=ROUNDING), token


def test_distributions_from_a_position_on_are_the_end_of_the_whole() -> None:
    sequences = [[1, 2, 3, 4], [5, 6]]
    (first, second) = reference().distributions(sequences, 4000, first_positions=[2, 1])
    (whole, whole_second) = reference().distributions(sequences, 4000)
    assert (len(first), len(second), len(whole)) == (2, 1, 4)
    assert_same_but_for_rounding(first, whole[2:])
    assert_same_but_for_rounding(second, whole_second[1:])
    assert first.next_ids.tolist() == [4, -1]
    assert whole_second.next_ids.tolist() == [6, -1]
    with pytest.raises(AssertionError):  # the comparison tells positions apart
        assert_same_but_for_rounding(replace(first, next_ids=whole[1:3].next_ids), whole[1:3])


class Counted(Reference):
    asked = 0

    def distributions(self, sequences, tokenizer_size, first_positions=None):  # type: ignore[no-untyped-def]
        self.asked += len(sequences)
        return super().distributions(sequences, tokenizer_size, first_positions)


def counted(sha256: str = "a", **options: object) -> tuple[CachedReference, Counted]:
    known = reference()
    inner = Counted(known.decoder, **options)  # type: ignore[arg-type]
    return CachedReference(inner, sha256), inner


def test_an_answer_is_computed_once() -> None:
    cached, inner = counted()
    before = cached.distributions([[1, 2, 3], [4]], 4000)
    cached_again, inner_again = counted()
    after = cached_again.distributions([[4], [1, 2, 3], [5]], 4000)
    assert (inner.asked, inner_again.asked) == (2, 1)
    for left, right in ((before[0], after[1]), (before[1], after[0])):
        assert all(equal(left, right, name) for name in ARRAYS)
        assert (left.tokenizer_size, left.vocab_size) == (right.tokenizer_size, right.vocab_size)


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "b"},
        {"weight_dtype": None},
    ],
)
def test_another_source_or_arithmetic_is_another_question(change: dict[str, object]) -> None:
    counted()[0].distributions([[1, 2]], 4000)
    cached, inner = counted(**change)  # type: ignore[arg-type]
    cached.distributions([[1, 2]], 4000)
    assert inner.asked == 1


def test_other_positions_or_ids_are_another_question() -> None:
    cached, inner = counted()
    for tokenizer_size, first in ((4000, 0), (3999, 0), (4000, 1), (4000, 0)):
        cached.distributions([[1, 2]], tokenizer_size, [first])
    assert inner.asked == 3


def test_a_damaged_answer_is_computed_again() -> None:
    counted()[0].distributions([[1, 2]], 4000)
    (path,) = (cache_folder() / "reference").iterdir()
    for damaged in (b"", path.read_bytes()[:-1], path.read_bytes()[:-1] + b"x"):
        path.write_bytes(damaged)
        cached, inner = counted()
        (distribution,) = cached.distributions([[1, 2]], 4000)
        assert inner.asked == 1
        assert len(distribution) == 2


def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CGCONVERT_CACHE", str(tmp_path / "file" / "cache"))
    cached, _ = counted()
    assert len(cached.distributions([[1, 2]], 4000)[0]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
