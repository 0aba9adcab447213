"""Library errors name arguments; the command line shows its flags in their place."""

from __future__ import annotations

import pytest

from cgconvert.cli.main import main
from cgconvert.cli.text import with_flags
from cgconvert.io.system.threads import thread_count, threads_of_environment
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


@pytest.mark.parametrize("value", ["abc", "-1", "0", "4.5", "9" * 5000, "\u0663", "\x1b[31m", "4,"])
def test_a_number_of_threads_that_is_none_is_one_line(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with pytest.raises(SystemExit) as left:
        main(["inspect", "nowhere"])
    line = "cgconvert: OMP_NUM_THREADS is not a number of threads; set it to 4, or not at all\n"
    assert (left.value.code, capsys.readouterr().err) == (2, line)
    assert thread_count() >= 1


@pytest.mark.parametrize(("value", "threads"), [("3", 3), (" 2 , 4", 2), ("", None)])
def test_threads_of_the_environment(
    value: str, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert threads_of_environment() == threads
