"""The choice of types under a budget, against all choices there are."""

from __future__ import annotations

import itertools
import random

import pytest

from cgconvert.calibrate.allocation import Choice, allocate, path
from cgconvert.errors import UsageError

NAMES = ("a", "b", "c", "d")


def some(seed: int) -> dict[str, list[Choice]]:
    chance = random.Random(seed)
    return {
        name: [
            Choice(type_, size * bits, chance.uniform(0.5, 2) * scale / 4**bits)
            for bits, type_ in ((3, "Q3"), (4, "Q4"), (5, "Q5"), (6, "Q6"), (8, "Q8"))
        ]
        for name, size, scale in zip(NAMES, (10, 40, 20, 40), (9, 1, 4, 2), strict=True)
    }


def total(chosen: dict[str, Choice]) -> tuple[int, float]:
    return sum(c.nbytes for c in chosen.values()), sum(c.loss for c in chosen.values())


@pytest.mark.parametrize("seed", range(5))
def test_no_choice_on_the_hull_is_better(seed: int) -> None:
    choices = some(seed)
    every = [
        total(dict(zip(choices, c, strict=True))) for c in itertools.product(*choices.values())
    ]
    for nbytes, loss in path(choices):
        assert min(other for size, other in every if size <= nbytes) == pytest.approx(loss)


@pytest.mark.parametrize("budget", [330, 400, 475, 560, 700, 880, 10_000])
def test_a_budget_is_kept_and_used(budget: int) -> None:
    choices = some(1)
    chosen = allocate(choices, budget)
    nbytes, loss = total(chosen)
    assert nbytes <= budget
    every = [
        total(dict(zip(choices, c, strict=True))) for c in itertools.product(*choices.values())
    ]
    assert loss <= 1.5 * min(other for size, other in every if size <= budget)


def test_a_type_that_is_larger_and_worse_is_never_taken() -> None:
    choices = {"a": [Choice("small", 1, 2.0), Choice("bad", 2, 3.0), Choice("large", 4, 1.0)]}
    assert [allocate(choices, n)["a"].type for n in (1, 3, 4)] == ["small", "small", "large"]


def test_what_does_not_fit_at_all() -> None:
    with pytest.raises(
        UsageError, match="330 bytes in their smallest types and the budget leaves 329"
    ):
        allocate(some(0), 329)
