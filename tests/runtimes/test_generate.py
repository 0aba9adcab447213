"""Decoding over a runtime whose logits are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from cgconvert.errors import InputError, UsageError, VerificationError
from cgconvert.runtimes.generate import generate
from cgconvert.runtimes.runtime import Runtime


class Table(Runtime):
    """Logits depend on the last token alone: row `token` of a table."""

    name = "table"
    device = "cpu"
    n_positions = 8
    tokenizer_size = 4
    eos_token_ids = (3,)

    def __init__(self, table: np.ndarray) -> None:
        self.table = table.astype(np.float32)
        self.fed: list[list[int]] = []
        self.resets = 0

    @classmethod
    def load(cls, path: Path, device: str = "cpu", threads: int | None = None) -> Self:
        return cls(np.eye(4))

    def reset(self) -> None:
        self.resets += 1

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        self.fed.append(list(ids))
        return self.table[list(ids)]

    def tokenize(self, text: str) -> list[int]:
        return [int(letter) for letter in text]

    def detokenize(self, ids: Sequence[int]) -> str:
        return "".join(map(str, ids))


def counting(size: int = 6) -> Table:
    """After token t comes t + 1, around."""
    return Table(np.roll(np.eye(size), 1, axis=1))


def test_greedy_feeds_the_prompt_once_and_then_single_tokens() -> None:
    runtime = counting()
    assert list(generate(runtime, [5, 0], 2, tokenizer_size=6, eos_token_ids=())) == [1, 2]
    assert runtime.fed == [[5, 0], [1]]
    assert runtime.resets == 1


def test_greedy_stops_before_end_of_text() -> None:
    assert list(generate(counting(), [0], 6, tokenizer_size=6, eos_token_ids=(3,))) == [1, 2]


def test_an_end_beyond_the_tokenizer_stops_too() -> None:
    """Other rows there are not picked; an id beyond the rows is no end and no error."""
    for ends in ((5,), (5, 99)):
        assert list(generate(counting(), [2], 6, tokenizer_size=5, eos_token_ids=ends)) == [3, 4]
    assert list(generate(counting(), [4], 1, tokenizer_size=5, eos_token_ids=(99,))) == [0]


def test_the_context_ends_generation() -> None:
    assert list(
        generate(counting(), [0, 1, 2, 3, 4, 5], 64, tokenizer_size=6, eos_token_ids=())
    ) == [0, 1]
    assert list(generate(counting(), [0] * 8, 64, tokenizer_size=6, eos_token_ids=())) == []


def test_equal_logits_go_to_the_lowest_id() -> None:
    runtime = Table(np.array([[0.0, 2.0, 2.0, 2.0]] * 4))
    assert list(generate(runtime, [0], 1, tokenizer_size=4, eos_token_ids=())) == [1]


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_padded_rows_are_never_picked(temperature: float) -> None:
    runtime = Table(np.array([[0.0, 0.1, 0.2, 50.0, 60.0]] * 5))
    new = [
        token
        for seed in range(20)
        for token in generate(
            runtime,
            [0],
            7,
            tokenizer_size=3,
            eos_token_ids=(),
            temperature=temperature,
            seed=seed,
        )
    ]
    assert len(new) == 140
    assert max(new) <= 2


def test_a_seed_gives_the_same_ids_and_another_seed_others() -> None:
    runtime = Table(np.zeros((50, 50)))
    runs = [
        list(
            generate(
                runtime, [0], 7, tokenizer_size=50, eos_token_ids=(), temperature=1.0, seed=seed
            )
        )
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_samples_follow_the_softmax() -> None:
    logits = np.log(np.array([[0.6, 0.3, 0.1]] * 3))
    drawn = [
        next(
            generate(
                Table(logits), [0], 1, tokenizer_size=3, eos_token_ids=(), temperature=t, seed=s
            )
        )
        for t in (1.0,)
        for s in range(2000)
    ]
    shares = np.bincount(drawn, minlength=3) / len(drawn)
    assert shares == pytest.approx([0.6, 0.3, 0.1], abs=0.04)  # 3.6 standard errors


def test_a_tiny_temperature_is_greedy() -> None:
    new = generate(counting(), [0], 5, tokenizer_size=6, eos_token_ids=(), temperature=1e-300)
    assert list(new) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("ids", "options", "error", "words"),
    [
        ([], {}, InputError, "no tokens"),
        ([0] * 9, {}, InputError, "9 tokens, the artefact takes 8"),
        ([0], {"temperature": -1.0}, UsageError, "temperature is -1"),
        ([0], {"temperature": float("nan")}, UsageError, "temperature"),
        ([0], {"max_new_tokens": -1}, UsageError, "new tokens is -1"),
    ],
)
def test_bad_requests_are_refused(ids, options, error, words) -> None:  # type: ignore[no-untyped-def]
    arguments = {"max_new_tokens": 1, "tokenizer_size": 6, "eos_token_ids": ()} | options
    with pytest.raises(error, match=words):
        generate(counting(), ids, **arguments)


def test_logits_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(VerificationError, match="after 1 tokens are not finite"):
        list(generate(Table(np.full((4, 4), np.nan)), [0], 1, tokenizer_size=4, eos_token_ids=()))
