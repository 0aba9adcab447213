"""The example of every public function runs, and every docstring has its sections."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Callable
from typing import Any

import pytest

import cgconvert

FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: getattr(cgconvert, name)
    for name in cgconvert.__all__
    if inspect.isfunction(getattr(cgconvert, name))
}


def run_examples(docstring: str, name: str) -> int:
    """Run the examples of a docstring; returns how many there are."""
    examples = doctest.DocTestParser().get_doctest(
        docstring, {"cgconvert": cgconvert}, name, None, None
    )
    report: list[str] = []
    outcome = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(examples, out=report.append)
    assert outcome.failed == 0, "".join(report)
    return outcome.attempted


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_of_a_function_runs(name: str) -> None:
    assert run_examples(inspect.getdoc(FUNCTIONS[name]) or "", name) > 0


def test_the_example_of_the_package_runs() -> None:
    assert run_examples(cgconvert.__doc__ or "", "cgconvert") > 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_and_outcome_is_documented(name: str) -> None:
    function = FUNCTIONS[name]
    text = inspect.getdoc(function) or ""
    for section in ("Args:", "Raises:", "Example:"):
        assert f"\n{section}\n" in text
    assert "\nReturns:\n" in text or "\nYields:\n" in text
    arguments = text.split("\nArgs:\n")[1].split("\n\n")[0]
    documented = [
        line.strip().split(":")[0]
        for line in arguments.splitlines()
        if line.startswith("    ") and not line.startswith("     ")
    ]
    assert documented == list(inspect.signature(function).parameters)
