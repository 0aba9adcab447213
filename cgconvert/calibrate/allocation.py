"""Which type each matrix gets: the least loss that fits into so many bytes.

Losses are taken to add up, so this is a choice of one (bytes, loss) for each matrix under a budget.
Each matrix starts at its smallest type; then, again and again, the step that buys most for its
bytes is taken, along the lower convex hull of each matrix's choices. That is optimal but for the
last step, which may not fit; what still does is taken afterwards.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cgconvert.errors import UsageError

__all__ = ["Choice", "allocate", "path"]

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Choice:
    """One type for one matrix: its bytes in the file, and the loss it costs (any unit)."""

    type: str
    nbytes: int
    loss: float


def allocate(choices: Mapping[Name, Sequence[Choice]], budget: int) -> dict[Name, Choice]:
    """The choice for each matrix whose bytes sum to at most `budget`.

    Raises UsageError where not even the smallest fit.
    """
    chosen, steps = _start(choices)
    left = budget - sum(choice.nbytes for choice in chosen.values())
    if left < 0:
        raise UsageError(
            f"the matrices take {budget - left} bytes in their smallest types and the budget "
            f"leaves {budget}; allow more"
        )
    waiting = [(steepest, i, name) for i, (name, steepest) in enumerate(_first(chosen, steps))]
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


def path(choices: Mapping[Name, Sequence[Choice]]) -> list[tuple[int, float]]:
    """All (bytes, loss) that growing budgets pass through, smallest first."""
    chosen, steps = _start(choices)
    moves = []
    for name, after in steps.items():
        here = chosen[name]
        for there in after:
            moves.append((_slope(here, there), there.nbytes - here.nbytes, there.loss - here.loss))
            here = there
    nbytes = sum(choice.nbytes for choice in chosen.values())
    loss = sum(choice.loss for choice in chosen.values())
    found = [(nbytes, loss)]
    for _, more, less in sorted(moves):
        nbytes, loss = nbytes + more, loss + less
        found.append((nbytes, loss))
    return found


def _start(
    choices: Mapping[Name, Sequence[Choice]],
) -> tuple[dict[Name, Choice], dict[Name, list[Choice]]]:
    hulls = {name: _hull(some) for name, some in choices.items()}
    return {n: hull[0] for n, hull in hulls.items()}, {n: hull[1:] for n, hull in hulls.items()}


def _first(
    chosen: Mapping[Name, Choice], steps: Mapping[Name, Sequence[Choice]]
) -> list[tuple[Name, float]]:
    return [(name, _slope(chosen[name], after[0])) for name, after in steps.items() if after]


def _hull(choices: Sequence[Choice]) -> list[Choice]:
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
    """What the loss falls by for a byte more, negative: the smallest is taken first."""
    return (there.loss - here.loss) / (there.nbytes - here.nbytes)
