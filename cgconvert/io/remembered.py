"""A memory of parsed files: while one artefact is verified, each file is parsed only once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

__all__ = ["remembered", "remembering"]

Value = TypeVar("Value")

_values: ContextVar[dict[Hashable, object] | None] = ContextVar("remembered", default=None)


@contextmanager
def remembering() -> Iterator[None]:
    """Let `remembered` keep its values until the block ends. Files must not change meanwhile."""
    token = _values.set({})
    try:
        yield
    finally:
        _values.reset(token)


def remembered(key: Hashable, make: Callable[[], Value]) -> Value:
    """Return what `make` returned for this key earlier in `remembering`; otherwise call it."""
    values = _values.get()
    if values is None:
        return make()
    if key not in values:
        values[key] = make()
    value: Value = values[key]  # type: ignore[assignment]
    return value
