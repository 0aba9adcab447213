"""The choice of a type for each matrix: the least loss that fits into a number of bytes.

Losses are taken to add up, so this is a choice of one (bytes, loss) for each matrix under a budget.
Each matrix starts at its smallest type; then, again and again, the step that saves most loss for
its bytes is taken, along the lower convex hull of each matrix's choices. That is optimal but for
the last step, which may not fit; smaller steps that still fit are taken afterwards.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cgconvert.errors import UsageError

__all__ = ["Choice", "allocate", "choose_types", "pareto_frontier"]

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Choice:
    """A type for a matrix: its bytes in the file, and the loss it costs (any unit)."""

    type: str
    nbytes: int
    loss: float


def choose_types(
    choices: Mapping[Name, Sequence[Choice]],
    budget: int,
    group: Callable[[Name], Name] = lambda name: name,
) -> tuple[dict[Name, str], float]:
    """Choose the type of every matrix so that all together take at most `budget` bytes.

    Args:
        choices: The types each matrix can have.
        budget: Bytes of all matrices.
        group: Matrices of the same group get the same type; all of them have the same types to
            choose from, in the same order. Without it each matrix is alone.

    Returns:
        The type of each matrix by its name, and the loss that is expected of all together.

    Raises:
        UsageError: Not even the smallest types fit.
    """
    grouped: dict[Name, list[Choice]] = {}
    for name, own in choices.items():
        key = group(name)
        if key in grouped:
            pairs = zip(grouped[key], own, strict=True)
            grouped[key] = [Choice(a.type, a.nbytes + b.nbytes, a.loss + b.loss) for a, b in pairs]
        else:
            grouped[key] = list(own)
    chosen = allocate(grouped, budget)
    types = {name: chosen[group(name)].type for name in choices}
    return types, sum(choice.loss for choice in chosen.values())


def allocate(choices: Mapping[Name, Sequence[Choice]], budget: int) -> dict[Name, Choice]:
    """The choice for each matrix; their bytes sum to at most `budget`.

    Raises UsageError where not even the smallest fit.
    """
    chosen, steps = _smallest_and_steps(choices)
    left = budget - sum(choice.nbytes for choice in chosen.values())
    if left < 0:
        raise UsageError(
            f"the matrices take {budget - left} bytes in their smallest types and the budget "
            f"leaves {budget}; allow more"
        )
    waiting = [
        (_slope(chosen[name], hull[0]), i, name)
        for i, (name, hull) in enumerate((n, hull) for n, hull in steps.items() if hull)
    ]
    heapq.heapify(waiting)
    while waiting:
        _, i, name = heapq.heappop(waiting)
        after = steps[name].pop(0)
        cost = after.nbytes - chosen[name].nbytes
        if cost > left:
            continue  # nor do its later, larger ones
        left -= cost
        chosen[name] = after
        if steps[name]:
            heapq.heappush(waiting, (_slope(after, steps[name][0]), i, name))
    return chosen


def pareto_frontier(choices: Mapping[Name, Sequence[Choice]]) -> list[tuple[int, float]]:
    """The (bytes, loss) of all matrices that growing budgets pass through, smallest first.

    No choice of types loses less than one of these at the same bytes.
    """
    chosen, steps = _smallest_and_steps(choices)
    moves = []
    for name, hull in steps.items():
        here = chosen[name]
        for there in hull:
            moves.append((_slope(here, there), there.nbytes - here.nbytes, there.loss - here.loss))
            here = there
    nbytes = sum(choice.nbytes for choice in chosen.values())
    loss = sum(choice.loss for choice in chosen.values())
    frontier = [(nbytes, loss)]
    for _, more_bytes, loss_change in sorted(moves):
        nbytes, loss = nbytes + more_bytes, loss + loss_change
        frontier.append((nbytes, loss))
    return frontier


def _smallest_and_steps(
    choices: Mapping[Name, Sequence[Choice]],
) -> tuple[dict[Name, Choice], dict[Name, list[Choice]]]:
    """The smallest choice of each matrix, and the larger ones on its hull."""
    hulls = {name: _convex_hull(types) for name, types in choices.items()}
    return {n: hull[0] for n, hull in hulls.items()}, {n: hull[1:] for n, hull in hulls.items()}


def _convex_hull(choices: Sequence[Choice]) -> list[Choice]:
    """The lower convex hull of (bytes, loss), from the smallest on, as long as the loss falls."""
    hull: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.nbytes, c.loss)):
        if hull and choice.loss >= hull[-1].loss:
            continue
        if hull and choice.nbytes == hull[-1].nbytes:
            continue
        while len(hull) > 1 and _slope(hull[-1], choice) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(choice)
    return hull


def _slope(here: Choice, there: Choice) -> float:
    """The change of the loss for a byte more, which is negative: the smallest is taken first."""
    return (there.loss - here.loss) / (there.nbytes - here.nbytes)
