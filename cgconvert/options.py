"""What an option is. Every option is declared once, as an `Option`, beside the code that it steers.

The command line (`cli/options.py`) makes its flags from the declarations, recipes
(`cli/recipe.py`) their schema, and a test compares them with the signatures of the Python API.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgconvert.errors import UsageError

__all__ = ["ByteSize", "Option", "check_values", "parse_size", "shown"]

_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}


class ByteSize(int):
    """The type of options that are a size: a number of bytes, or text such as 5GB or 512MiB."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a command, of a recipe's step and of a function of the API.

    Attributes:
        name: As Python writes it: `max_shard_size`. The flag is `--max-shard-size`.
        type: str, int, float, bool, Path, ByteSize or a Mapping of str to something.
        default: What holds where the option is not given. None: the code decides.
        help: A line for `--help`, with its full stop.
        choices: The only values there are, of `type`.
        any_case: Whether choices may be written in lower case too; they are kept in upper case.
        minimum: The least number, itself allowed unless `above_minimum`.
        maximum: The largest number, itself allowed.
        above_minimum: Whether `minimum` itself is too small.
        must_exist: Whether a path has to be there already.
        repeatable: Whether the flag may be given several times; the API takes a sequence.
        parse: Reads one value from the command line's text, for a Mapping a pair of name and
            value. Raises ValueError with what is wrong. None: `type` decides.
        metavar: What `--help` shows for the value.
        short: A short flag beside the long one, such as `-o`.
    """

    name: str
    type: Any = str
    default: Any = None
    help: str = ""
    choices: tuple[Any, ...] = ()
    any_case: bool = False
    minimum: float | None = None
    maximum: float | None = None
    above_minimum: bool = False
    must_exist: bool = False
    repeatable: bool = False
    parse: Callable[[str], Any] | None = None
    metavar: str | None = None
    short: str | None = None

    @property
    def flag(self) -> str:
        """The long flag of the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def is_mapping(self) -> bool:
        """Whether its value is a mapping; the flag then takes one entry and is repeatable."""
        return typing.get_origin(self.type) is Mapping

    @property
    def annotation(self) -> Any:
        """The annotation of the API's parameter of this name."""
        accepted: Any = {ByteSize: int | str, Path: str | Path}.get(self.type, self.type)
        if self.repeatable and not self.is_mapping:
            return Sequence[accepted]
        return accepted | None if self.default is None else accepted

    def check(self, value: Any) -> None:
        """Raise UsageError unless `value` is one of the choices and within the bounds.

        None, which stands for an option that was not given, always passes.
        """
        if value is None:
            return
        if self.choices and (value not in self.choices or isinstance(value, bool)):
            allowed = ", ".join(map(str, self.choices))
            raise UsageError(f"`{self.name}={shown(value)}` is not one of {allowed}")
        if self.out_of_bounds(value):
            raise UsageError(f"`{self.name}={shown(value)}` is not in the range {self.bounds}")

    def out_of_bounds(self, value: Any) -> bool:
        """Whether a number is smaller than the least or larger than the largest."""
        if self.minimum is not None and (
            value <= self.minimum if self.above_minimum else not value >= self.minimum
        ):
            return True
        return self.maximum is not None and not value <= self.maximum

    @property
    def bounds(self) -> str:
        """The range as click writes it: `x>=2`, `1<=x<=16`; empty where there is none."""
        less = "<" if self.above_minimum else "<="
        if self.minimum is None:
            return "" if self.maximum is None else f"x<={self.maximum}"
        if self.maximum is None:
            return f"x{less.replace('<', '>')}{self.minimum}"
        return f"{self.minimum}{less}x<={self.maximum}"


def check_values(options: Iterable[Option], values: Mapping[str, Any]) -> None:
    """Check the values of an API call, by name, as their declarations say.

    Raises UsageError for a name that is not declared and for a value that its option refuses.
    """
    declared = {option.name: option for option in options}
    for name, value in values.items():
        if name not in declared:
            raise UsageError(f"no option {name!r}; there are {', '.join(declared)}")
        declared[name].check(value)


def parse_size(value: int | str) -> int:
    """Return the bytes that 5GB, 500 MB, 512MiB or a plain number mean, at least one.

    Raises ValueError for anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", str(value).upper())
    size = 0
    if match and len(match[1]) < 20:
        size = int(float(match[1]) * _UNITS[match[2] or ""])
    if size < 1:
        raise ValueError(f"{value!r} is not a size; write 5GB, 500MB or a number of bytes")
    return size


def shown(value: Any) -> str:
    """A value as a message shows it, text in double quotes: `4`, `"fast"`."""
    return f'"{value}"' if isinstance(value, str | Path) else repr(value)
