"""Flags of the command line, made from the declarations of options."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from cgconvert.api.declarations import declared_options
from cgconvert.cli.completion import COMPLETIONS, begun_words
from cgconvert.cli.output import output_options, verbosity
from cgconvert.cli.text import with_flags
from cgconvert.options import ByteSize, Option, parse_size

__all__ = ["arguments", "click_option", "click_options", "verbosity"]

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:  # the oldest click that is supported has no type argument here
    ParamType = click.ParamType


def _resume_option() -> click.Option:
    """--resume, which older versions needed to go on: accepted, hidden, without effect."""
    return click.Option(["--resume"], is_flag=True, hidden=True, expose_value=False)


def click_options(*options: Option) -> list[click.Parameter]:
    """The flags of a command's options, in this order, then --quiet and --verbose."""
    hidden = [_resume_option()] if any(option.name == "keep" for option in options) else []
    return [*map(click_option, options), *hidden, *output_options()]


def click_option(option: Option) -> click.Option:
    """The flag of one option, whose value the command gets under the option's name."""
    flags = [option.short, option.flag] if option.short else [option.flag]
    help_ = with_flags(option.help, declared_options())
    if option.type is bool:
        return click.Option(
            [*flags, option.name],
            is_flag=True,
            flag_value=not option.default,
            default=option.default,
            help=help_,
        )
    return click.Option(
        [*flags, option.name],
        type=_type(option),
        default=option.default,
        show_default=option.default is not None,
        multiple=option.repeatable or option.is_mapping,
        metavar=option.metavar,
        help=help_,
        shell_complete=COMPLETIONS.get(option.name),
    )


def arguments(options: Iterable[Option], values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for the API from the values that click has parsed.

    Entries of a mapping come as pairs; of two with one name the first holds.
    """
    parsed = dict(values)
    for option in options:
        if option.is_mapping:
            pairs = parsed[option.name]
            parsed[option.name] = _first_of_each(pairs) if pairs else None
    return parsed


def _type(option: Option) -> ParamType | type:
    if option.choices:
        return _Choice(option)
    if option.parse is not None:
        return _Parsed(option.parse, option.metavar or "text")
    if option.type is ByteSize:
        return _Parsed(parse_size, "size")
    if option.type is Path:
        return _Path(exists=option.must_exist, path_type=Path)
    if option.bounds and option.type is int:
        whole = click.IntRange(
            _whole(option.minimum), _whole(option.maximum), option.exclusive_minimum
        )
        whole.name = "integer"  # "not a valid integer", without click's word "range"
        return whole if option.word is None else _NumberOrWord(whole, option.word)
    if option.bounds:
        number = click.FloatRange(option.minimum, option.maximum, option.exclusive_minimum)
        number.name = "number"
        return number
    plain: type = option.type
    return plain


def _whole(bound: float | None) -> int | None:
    return None if bound is None else int(bound)


class _Path(click.Path):
    """A path; an empty text, as of a variable that is not set, would be the working folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty.", param, ctx)
        return super().convert(value, param, ctx)


class _Choice(click.Choice[Any]):
    """The choices of an option, in any case and by their aliases; shown as they are declared."""

    def __init__(self, option: Option) -> None:
        super().__init__(option.choices)
        self.option = option

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(self.option.canonical(value), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return begun_words(map(str, self.option.choices), incomplete)


class _NumberOrWord(ParamType):
    """A whole number within bounds, or one word in its place."""

    def __init__(self, number: click.IntRange, word: str) -> None:
        self.number, self.word, self.name = number, word, "whole number or word"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == self.word:
            return value
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a whole number nor {self.word}.", param, ctx)
        return self.number.convert(number, param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return begun_words((self.word,), incomplete)


class _Parsed(ParamType):
    """A value that a function reads from the text, raising ValueError where it cannot."""

    def __init__(self, parse: Callable[[str], Any], name: str) -> None:
        self.parse, self.name = parse, name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _first_of_each(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for name, value in pairs:
        mapping.setdefault(name, value)
    return mapping
