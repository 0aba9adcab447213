"""Options are declared once: what a declaration accepts, and how sizes are written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cgconvert.errors import UsageError
from cgconvert.options import ByteSize, Option, accepted_values, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5 * 10**9),
        ("1.5 kb", 1500),
        ("512MiB", 512 << 20),
        ("77B", 77),
        (77, 77),
        ("200000000", 200_000_000),
    ],
)
def test_sizes_are_read_in_all_units(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "lots", "-1", "0", "0.0", "4 parsecs", "9" * 20])
def test_an_invalid_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size; write 5GB, 500MB or a number of bytes"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "question"),
    [("4", "write 4GB"), (4.2, "write 4.2GB"), ("4.2", "write 4.2GB"), ("200", "write 200MB"),
     ("99999", "write 99999MB"), ("1500.5", "write 1500.5MB")],
)  # fmt: skip
def test_a_size_without_a_unit_is_asked_for_it(size: float | str, question: str) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(str(size))} bytes\? {question}$"):
        parse_size(size)


@pytest.mark.parametrize(
    ("option", "annotation"),
    [
        (Option(name="a"), str | None),
        (Option(name="a", default="x"), str),
        (Option(name="a", type=int, choices=(4, 8)), int | None),
        (Option(name="a", type=ByteSize, default="5GB"), int | str),
        (Option(name="a", type=Path), str | Path | None),
        (Option(name="a", type=Path, repeatable=True), Sequence[str | Path]),
        (Option(name="a", type=Mapping[str, str]), Mapping[str, str] | None),
    ],
)
def test_annotation_of_a_parameter(option: Option, annotation: Any) -> None:
    assert option.annotation == annotation


@pytest.mark.parametrize(
    ("option", "refused", "message"),
    [
        (Option(name="dtype", choices=("a", "b")), "c", '`dtype="c"` is not one of a, b'),
        (Option(name="bits", type=int, choices=(1, 8)), True, "`bits=True` is not one of 1, 8"),
        (Option(name="n", type=int, minimum=2), 1, "`n=1` is not in the range x>=2"),
        (
            Option(name="n", type=int, minimum=0, exclusive_minimum=True),
            0,
            "`n=0` is not in the range x>0",
        ),
        (
            Option(name="n", type=int, minimum=1, maximum=16),
            17,
            "`n=17` is not in the range 1<=x<=16",
        ),
        (Option(name="n", type=float, minimum=1), float("nan"), "`n=nan` is not a finite number"),
        (Option(name="n", type=int, word="auto"), "4", '`n="4"` is not a whole number, nor auto'),
        (Option(name="dtype", choices=("a",)), "b c", '`dtype` "b c" is not one of a'),
    ],
)
def test_values_that_are_refused(option: Option, refused: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        option.accept(refused)
    assert str(caught.value) == message


def test_values_are_given_in_the_types_that_the_code_works_with() -> None:
    options = [
        Option(name="dtype", choices=("A", "B"), aliases={"alpha": "A"}),
        Option(name="n", type=int, minimum=1, maximum=16),
        Option(name="size", type=ByteSize),
        Option(name="where", type=Path),
    ]
    for spelling in ("a", "A", "alpha", " Alpha "):
        assert accepted_values(options, {"dtype": spelling, "n": None}) == {"dtype": "A"}
    assert accepted_values(options, {"n": 16, "size": "1kB", "where": "x"}) == {
        "n": 16, "size": 1000, "where": Path("x")
    }  # fmt: skip
    with pytest.raises(UsageError, match="no option 'm'; there are dtype, n"):
        accepted_values(options, {"m": 1})
    with pytest.raises(UsageError, match="`size`: 'lots' is not a size"):
        accepted_values(options, {"size": "lots"})
