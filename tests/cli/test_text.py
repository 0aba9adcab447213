"""Library errors name arguments; the command line shows its flags in their place."""

from __future__ import annotations

import pytest

from cgconvert.cli.text import with_flags
from cgconvert.options import Option

OPTIONS = [
    Option(name="mp_num", type=int),
    Option(name="bits", type=int),
    Option(name="effort"),
    Option(name="force", type=bool, default=False),
    Option(name="output", short="-o"),
]


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("give it with `mp_num`", "give it with --mp-num"),
        ("add `bits=4` or 8", "add --bits 4 or 8"),
        ('`effort="fast"` takes no text', "--effort fast takes no text"),
        ("x exists; give `force=True` to replace it", "x exists; give --force to replace it"),
        ("choose another `output`", "choose another -o"),
        ("a/`mp_nums`: `model` and `lm_head=3` stay", "a/`mp_nums`: `model` and `lm_head=3` stay"),
        ("`bits 4` and ` bits` are no arguments", "`bits 4` and ` bits` are no arguments"),
    ],
)
def test_arguments_become_flags(message: str, shown: str) -> None:
    assert with_flags(message, OPTIONS) == shown
