"""Helpers of error messages."""

from __future__ import annotations

import pytest

from cgconvert.errors import first_few


@pytest.mark.parametrize(
    ("texts", "message"),
    [([], ""), (["a"], "a"), (["a", "b"], "a; b"), (["a", "b", "c", "d"], "a; b; 2 more")],
)
def test_first_few_counts_the_rest(texts: list[str], message: str) -> None:
    assert first_few(texts, 2) == message


def test_first_few_joins_as_given() -> None:
    assert first_few(["a", "b", "c"], 2, separator=", ", conjunction=" and ") == "a, b and 1 more"
