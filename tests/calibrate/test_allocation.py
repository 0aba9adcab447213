"""The choice of types under a budget, compared with all possible choices."""

from __future__ import annotations

import itertools
import random

import pytest

from cgconvert.calibrate.allocation import Choice, allocate, choose_types, pareto_frontier
from cgconvert.errors import UsageError

NAMES = ("a", "b", "c", "d")


def random_choices(seed: int) -> dict[str, list[Choice]]:
    generator = random.Random(seed)
    return {
        name: [
            Choice(type_, size * bits, generator.uniform(0.5, 2) * scale / 4**bits)
            for bits, type_ in ((3, "Q3"), (4, "Q4"), (5, "Q5"), (6, "Q6"), (8, "Q8"))
        ]
        for name, size, scale in zip(NAMES, (10, 40, 20, 40), (9, 1, 4, 2), strict=True)
    }


def total(chosen: dict[str, Choice]) -> tuple[int, float]:
    return sum(c.nbytes for c in chosen.values()), sum(c.loss for c in chosen.values())


@pytest.mark.parametrize("seed", range(5))
def test_no_choice_is_better_than_the_pareto_frontier(seed: int) -> None:
    choices = random_choices(seed)
    totals = [
        total(dict(zip(choices, c, strict=True))) for c in itertools.product(*choices.values())
    ]
    for nbytes, loss in pareto_frontier(choices):
        assert min(lost for size, lost in totals if size <= nbytes) == pytest.approx(loss)


@pytest.mark.parametrize("budget", [330, 400, 475, 560, 700, 880, 10_000])
def test_a_budget_is_kept_and_used(budget: int) -> None:
    choices = random_choices(1)
    chosen = allocate(choices, budget)
    nbytes, loss = total(chosen)
    assert nbytes <= budget
    totals = [
        total(dict(zip(choices, c, strict=True))) for c in itertools.product(*choices.values())
    ]
    assert loss <= 1.5 * min(lost for size, lost in totals if size <= budget)


def test_matrices_of_a_group_get_one_type() -> None:
    """The group counts as one matrix, whose bytes and losses are the sums of its members'."""
    choices = random_choices(3)
    types, loss = choose_types(choices, 700, lambda name: "a" if name == "b" else name)
    assert types.keys() == choices.keys()
    assert types["a"] == types["b"]
    chosen = [c for name in choices for c in choices[name] if c.type == types[name]]
    assert sum(choice.nbytes for choice in chosen) <= 700
    assert loss == pytest.approx(sum(choice.loss for choice in chosen))


def test_a_type_that_is_larger_and_worse_is_never_taken() -> None:
    choices = {"a": [Choice("small", 1, 2.0), Choice("bad", 2, 3.0), Choice("large", 4, 1.0)]}
    assert [allocate(choices, n)["a"].type for n in (1, 3, 4)] == ["small", "small", "large"]


def test_a_budget_that_nothing_fits_is_refused() -> None:
    with pytest.raises(
        UsageError, match="330 B in their smallest types and the budget leaves 329 B"
    ):
        allocate(random_choices(0), 329)
