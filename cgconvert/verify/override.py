"""A bound given by a user, in an option or a recipe."""

from __future__ import annotations

import math
from collections.abc import Collection

__all__ = ["NONE", "bound_of"]

NONE = "none"
"""Stands for no bound: the value is reported and not judged."""


def bound_of(check: str, value: object, known: Collection[str]) -> float | None:
    """The bound that `value` means, a number or NONE, for one of the checks `known`.

    Raises ValueError saying what is wrong, in words that go on after where it was said.
    """
    if check not in known:
        raise ValueError(f"no check {check!r} has a bound to set; there are {', '.join(known)}")
    if value is None or value == NONE:
        return None
    try:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            bound = float(value)
            if math.isfinite(bound):
                return bound
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{check}: {value!r} is not a number, nor {NONE} to only report it")
