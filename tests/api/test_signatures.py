"""The API's parameters are the declared options: same names, defaults and types."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import cgconvert
from cgconvert.api.conversion_table import conversions
from cgconvert.api.declarations import CACHE, GENERATE, READ, VERIFY, WRITE
from cgconvert.api.generation import stream_generate
from cgconvert.options import Option

EXPECTED: dict[str, tuple[Callable[..., Any], Sequence[Option]]] = {
    "load": (cgconvert.load, (*READ, *CACHE)),
    "inspect": (cgconvert.inspect, (*READ, *CACHE)),
    "execute": (cgconvert.execute, (*WRITE, *CACHE)),
    **{
        name: (
            getattr(cgconvert, name.replace("-", "_")),
            (*conversion.options, *WRITE, *READ, *CACHE),
        )
        for name, conversion in conversions().items()
    },
    "verify": (cgconvert.verify, (*VERIFY, *READ, *CACHE)),
    "generate": (cgconvert.generate, (*GENERATE, *CACHE)),
    "stream_generate": (stream_generate, (*GENERATE, *CACHE)),
}

OTHER = {"progress"}
"""Keyword parameters that are no option of the command line."""


@pytest.mark.parametrize("name", EXPECTED)
def test_parameters_are_the_declared_options(name: str) -> None:
    function, options = EXPECTED[name]
    parameters = {
        parameter.name: parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert [n for n in parameters if n not in OTHER] == [option.name for option in options]
    annotations = typing.get_type_hints(function)
    for option in options:
        default = () if option.repeatable else option.default
        assert parameters[option.name].default == default, option.name
        accepted = members(annotations[option.name])
        assert members(option.annotation) <= accepted, (option.name, accepted)


def members(annotation: Any) -> set[Any]:
    """The types that a union, or a sequence of a union, accepts."""
    if typing.get_origin(annotation) is Sequence:
        return {("sequence of", member) for member in members(typing.get_args(annotation)[0])}
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return set().union(*map(members, typing.get_args(annotation)))
    return {annotation}
