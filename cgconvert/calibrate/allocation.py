"""The choice of a type for each matrix, so that the total loss is least within a number of bytes.

The losses of matrices are assumed to add up, so this is a multiple-choice knapsack problem. It is
solved greedily: each matrix starts with its smallest type. Then the upgrade that saves most loss
per byte is taken again and again, where the upgrades of a matrix go along the lower convex hull of
its (bytes, loss). The result is optimal apart from the last upgrades: the first one that no longer
fits is left out, and later ones that still fit are taken.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cgconvert.errors import UsageError
from cgconvert.io.progress import format_bytes

__all__ = ["Choice", "allocate", "choose_types", "pareto_frontier"]

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Choice:
    """A type that a matrix can have.

    Attributes:
        type: the name of the type.
        nbytes: the bytes of the matrix in the file.
        loss: the loss of the model if this matrix has this type, in any unit.
    """

    type: str
    nbytes: int
    loss: float


def choose_types(
    choices: Mapping[Key, Sequence[Choice]],
    budget: int,
    group: Callable[[Key], Key] = lambda key: key,
) -> tuple[dict[Key, str], float]:
    """Choose the type of every matrix so that all together take at most `budget` bytes.

    Args:
        choices: The types that each matrix can have, by the key of the matrix.
        budget: The bytes that all matrices may take together.
        group: Gives the group of a matrix. Matrices of the same group get the same type; they must
            have the same types to choose from, in the same order. By default each matrix is a group
            of its own.

    Returns:
        The type of each matrix by its key, and the expected total loss.

    Raises:
        UsageError: Not even the smallest types fit.
    """
    grouped: dict[Key, list[Choice]] = {}
    for key, matrix_choices in choices.items():
        group_key = group(key)
        if group_key in grouped:
            pairs = zip(grouped[group_key], matrix_choices, strict=True)
            grouped[group_key] = [
                Choice(a.type, a.nbytes + b.nbytes, a.loss + b.loss) for a, b in pairs
            ]
        else:
            grouped[group_key] = list(matrix_choices)
    chosen = allocate(grouped, budget)
    types = {key: chosen[group(key)].type for key in choices}
    return types, sum(choice.loss for choice in chosen.values())


def allocate(choices: Mapping[Key, Sequence[Choice]], budget: int) -> dict[Key, Choice]:
    """Choose one of the choices of each matrix; their bytes sum to at most `budget`.

    Raises UsageError if not even the smallest choices fit.
    """
    chosen, upgrades = _smallest_and_upgrades(choices)
    free_bytes = budget - sum(choice.nbytes for choice in chosen.values())
    if free_bytes < 0:
        raise UsageError(
            f"the matrices take {format_bytes(budget - free_bytes, round_up=True)} in their "
            f"smallest types and the budget leaves {format_bytes(max(budget, 0))}; allow more"
        )
    # The number i decides between equal slopes, because keys need not be comparable.
    queue = [
        (_slope(chosen[key], hull[0]), i, key)
        for i, (key, hull) in enumerate((k, hull) for k, hull in upgrades.items() if hull)
    ]
    heapq.heapify(queue)
    while queue:
        _, i, key = heapq.heappop(queue)
        upgrade = upgrades[key].pop(0)
        added_bytes = upgrade.nbytes - chosen[key].nbytes
        if added_bytes > free_bytes:
            continue  # the later upgrades of this matrix are larger and do not fit either
        free_bytes -= added_bytes
        chosen[key] = upgrade
        if upgrades[key]:
            heapq.heappush(queue, (_slope(upgrade, upgrades[key][0]), i, key))
    return chosen


def pareto_frontier(choices: Mapping[Key, Sequence[Choice]]) -> list[tuple[int, float]]:
    """List the total (bytes, loss) of all matrices that `allocate` reaches as the budget grows.

    The list begins with the fewest bytes. No choice of types has fewer bytes and less loss than an
    entry.
    """
    chosen, upgrades = _smallest_and_upgrades(choices)
    moves = []
    for key, hull in upgrades.items():
        smaller = chosen[key]
        for larger in hull:
            added_bytes, loss_change = larger.nbytes - smaller.nbytes, larger.loss - smaller.loss
            moves.append((_slope(smaller, larger), added_bytes, loss_change))
            smaller = larger
    nbytes = sum(choice.nbytes for choice in chosen.values())
    loss = sum(choice.loss for choice in chosen.values())
    frontier = [(nbytes, loss)]
    for _, added_bytes, loss_change in sorted(moves):
        nbytes, loss = nbytes + added_bytes, loss + loss_change
        frontier.append((nbytes, loss))
    return frontier


def _smallest_and_upgrades(
    choices: Mapping[Key, Sequence[Choice]],
) -> tuple[dict[Key, Choice], dict[Key, list[Choice]]]:
    """Return the smallest choice of each matrix, and the larger ones on its convex hull."""
    hulls = {key: _convex_hull(matrix_choices) for key, matrix_choices in choices.items()}
    smallest = {key: hull[0] for key, hull in hulls.items()}
    return smallest, {key: hull[1:] for key, hull in hulls.items()}


def _convex_hull(choices: Sequence[Choice]) -> list[Choice]:
    """Return the lower convex hull of (bytes, loss), smallest first, as long as the loss falls."""
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


def _slope(smaller: Choice, larger: Choice) -> float:
    """Return the change of the loss per added byte. It is negative; the lowest slope saves most."""
    return (larger.loss - smaller.loss) / (larger.nbytes - smaller.nbytes)
