"""Helpers of error messages."""

from __future__ import annotations

import pytest

from cgconvert.errors import first_few, in_words


@pytest.mark.parametrize(
    ("texts", "message"),
    [([], ""), (["a"], "a"), (["a", "b"], "a; b"), (["a", "b", "c", "d"], "a; b; 2 more")],
)
def test_first_few_counts_the_rest(texts: list[str], message: str) -> None:
    assert first_few(texts, 2) == message


def test_first_few_joins_as_given() -> None:
    assert first_few(["a", "b", "c"], 2, separator=", ", conjunction=" and ") == "a, b and 1 more"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("give it with `mp_num`", "give it with mp_num"),
        ('full, use `device="cpu"`: 14 GiB', "full, use device cpu: 14 GiB"),
        ("add `bits=4` or `force=True`", "add bits 4 or force"),
        ("pip install 'genai>=1'", "pip install 'genai>=1'"),
    ],
)
def test_arguments_become_plain_words(message: str, words: str) -> None:
    assert in_words(message) == words
