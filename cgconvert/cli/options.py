"""Flags of the command line, made from the declarations of options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from cgconvert.api.declarations import declared_options
from cgconvert.cli.completion import COMPLETIONS, begun_words
from cgconvert.cli.output import output_options, verbosity
from cgconvert.cli.text import with_flags
from cgconvert.errors import UsageError
from cgconvert.options import ByteSize, Option

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


def _type(option: Option) -> ParamType:
    if option.choices:
        return _Choice(option)
    return _Path(option) if option.type is Path else _Value(option)


class _Value(ParamType):
    """The value of an option, which its declaration reads and checks."""

    def __init__(self, option: Option) -> None:
        self.option = option
        self.name = {int: "integer", float: "number", ByteSize: "size"}.get(option.type, "text")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return _read(self.option, value, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return begun_words((self.option.word,) if self.option.word else (), incomplete)


class _Path(click.Path):
    """A path, which the shell completes."""

    def __init__(self, option: Option) -> None:
        super().__init__(exists=option.must_exist, path_type=Path)
        self.option = option

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(_read(self.option, value, ctx), param, ctx)


class _Choice(click.Choice[Any]):
    """The choices of an option, in any case and by their aliases; shown as they are declared."""

    def __init__(self, option: Option) -> None:
        super().__init__(option.choices)
        self.option = option

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return _read(self.option, value, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return begun_words(map(str, self.option.choices), incomplete)


def _read(option: Option, value: Any, ctx: click.Context | None) -> Any:
    """Read the text of an option; what is no text is a default."""
    try:
        return option.read(value) if isinstance(value, str) else value
    except UsageError as error:
        raise click.UsageError(with_flags(str(error), (option,)), ctx) from None


def _first_of_each(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for name, value in pairs:
        mapping.setdefault(name, value)
    return mapping
