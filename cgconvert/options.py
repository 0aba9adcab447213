"""What an option is. Every option is declared once, as an `Option`, beside the code that it steers.

The command line (`cli/options.py`) makes its flags from the declarations, recipes
(`cli/recipe.py`) their schema, and a test compares them with the signatures of the Python API.
All three have a value checked by the declaration, and say the same line about one that is refused.
"""

from __future__ import annotations

import errno
import math
import os
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Final, NoReturn

from cgconvert.errors import UsageError
from cgconvert.escaping import abridged

__all__ = [
    "AUTO",
    "DECIMAL_NUMBER",
    "FLOAT_ALIASES",
    "ByteSize",
    "Option",
    "accepted_values",
    "defaults",
    "parse_size",
    "shown",
]

WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")
DECIMAL_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
NO_NUMBER = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
"""How numbers are written on a command line. Python's own int and float would also take 1_000 and
digits of every script, and refuse whole numbers of more than 4300 digits."""

MAX_DIGITS = 40
"""Digits of a whole number that is compared with bounds; with more it is beyond all of them."""

AUTO: Final = "auto"
"""The word that has a number measured in place of being given, as that of groups in qkv_proj."""

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


FLOAT_ALIASES: Mapping[str, str] = {
    **dict.fromkeys(("fp16", "f16", "half", "torch.float16"), "float16"),
    **dict.fromkeys(("bf16", "torch.bfloat16"), "bfloat16"),
    **dict.fromkeys(("fp32", "f32", "float", "single", "torch.float32"), "float32"),
}
"""What other tools call the types of floats."""

LEAST_BARE_SIZE = 100_000
"""The least size that is believed to be bytes if it has no unit: no model is smaller."""

LARGEST_SIZE = 1 << 60
"""The largest size: no disk is larger."""


class ByteSize(int):
    """The type of options that are a size: a number of bytes, or text such as 5GB or 512MiB."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a command, of a recipe's step and of a function of the API.

    Attributes:
        name: As Python writes it: `max_shard_size`. The flag is `--max-shard-size`.
        type: str, int, float, bool, Path, ByteSize or a Mapping of str to something.
        default: The value if the option is not given. None: the code decides.
        help: A line for `--help`, with its full stop.
        choices: The allowed values, of `type`; empty if others are allowed too. The case of their
            letters does not matter, and the code gets the value as it is written here.
        aliases: Other spellings of choices, in lower case, and the choice that each stands for.
            `--help` does not show them.
        word: A word that is allowed in place of a number; None if there is none.
        minimum: The smallest number, itself allowed unless `exclusive_minimum`.
        maximum: The largest number, itself allowed.
        exclusive_minimum: Whether a number must be larger than `minimum`.
        must_exist: Whether the path must exist.
        repeatable: Whether the flag may be given several times; the API takes a sequence.
        parse: For a Mapping: reads the text of one entry on the command line as a pair of name and
            value. Raises ValueError saying what is wrong.
        check: For a Mapping: returns the value of one entry, from its name and what was given.
            Raises ValueError saying what is wrong. None: the value is text.
        metavar: What `--help` shows for the value.
        short: A short flag beside the long one, such as `-o`.
    """

    name: str
    type: Any = str
    default: Any = None
    help: str = ""
    choices: tuple[Any, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    word: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: bool = False
    must_exist: bool = False
    repeatable: bool = False
    parse: Callable[[str], tuple[str, Any]] | None = None
    check: Callable[[str, Any], Any] | None = None
    metavar: str | None = None
    short: str | None = None

    @property
    def flag(self) -> str:
        """The long flag of the command line; that of an option which is on says that it is not."""
        no = "no-" if self.type is bool and self.default else ""
        return f"--{no}{self.name.replace('_', '-')}"

    @property
    def is_mapping(self) -> bool:
        """Whether its value is a mapping; the flag then takes one entry and is repeatable."""
        return typing.get_origin(self.type) is Mapping

    @property
    def annotation(self) -> Any:
        """The annotation that the API's parameter of this name has to have; a test compares."""
        accepted: Any = {ByteSize: int | str, Path: str | Path}.get(self.type, self.type)
        if self.word is not None:
            accepted |= typing.Literal[self.word]
        if self.repeatable and not self.is_mapping:
            return Sequence[accepted]
        return accepted | None if self.default is None else accepted

    def accept(self, value: Any) -> Any:
        """Return `value` in the type that the code works with: bytes of a size, a Path, a tuple.

        Raises UsageError unless it is of the option's type, one of the choices and in the range.
        """
        if self.is_mapping:
            if not isinstance(value, Mapping):
                self._refuse(value, "is not a mapping of names to values")
            return {self._entry_name(name): self.accept_entry(name, value[name]) for name in value}
        if not self.repeatable:
            return self.accept_item(value)
        items = [value] if isinstance(value, str | Path) else value
        if not isinstance(items, Sequence) or isinstance(items, bytes | bytearray):
            self._refuse(value, "is not a list")
        return tuple(map(self.accept_item, items))

    def accept_item(self, value: Any) -> Any:
        """Check one value, of those that a repeatable option has, as `accept` does."""
        if self.word is not None and isinstance(value, str) and value == self.word:
            return value
        if self.choices:
            return self._choice(value)
        if self.type is bool:
            return value if isinstance(value, bool) else self._refuse(value, "is not true or false")
        if self.type is int or self.type is float:
            return self._number(value)
        if self.type is ByteSize:
            return self._size(value)
        return self._text(value)

    def accept_entry(self, name: str, value: Any) -> Any:
        """Check the value of one entry of a mapping."""
        if self.check is None:
            return self._text(value)
        try:
            return self.check(name, value)
        except ValueError as error:
            raise UsageError(f"`{self.name}`: {error}") from None

    def read(self, text: str) -> Any:
        """Check one value as it is written on a command line; of a mapping, one entry as a pair.

        Raises UsageError as `accept` does, with the same line.
        """
        if self.parse is not None:
            try:
                return self.parse(text)
            except ValueError as error:
                raise UsageError(f"`{self.name}`: {error}") from None
        return self.accept_item(self._read_number(text) if self._is_number else text)

    @property
    def _is_number(self) -> bool:
        return self.type is int or self.type is float

    def _read_number(self, text: str) -> int | float | str:
        """The number that a text is; the text itself if it is none."""
        text = text.strip(" ")
        if self.type is float:
            is_float = DECIMAL_NUMBER.fullmatch(text) or NO_NUMBER.fullmatch(text)
            return float(text) if is_float else text
        if not WHOLE_NUMBER.fullmatch(text):
            return text
        if len(text) > MAX_DIGITS:
            self._refuse(text, f"is not in the range {self.bounds}")
        return int(text)

    def _number(self, value: Any) -> int | float:
        is_whole = self.type is int
        kind: Any = Integral if is_whole else Real
        if isinstance(value, bool) or not isinstance(value, kind):
            nor = "" if self.word is None else f", nor {self.word}"
            self._refuse(value, f"is not a {'whole ' * is_whole}number{nor}")
        try:
            number = int(value) if is_whole else float(value) + 0.0  # which makes 0.0 of -0.0
        except OverflowError:
            number = math.inf
        if not is_whole and not math.isfinite(number):
            self._refuse(value, "is not a finite number")
        if self.out_of_bounds(number):
            self._refuse(value, f"is not in the range {self.bounds}")
        return number

    def _size(self, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            self._refuse(value, "is not a size")
        try:
            return parse_size(value)
        except ValueError as error:
            raise UsageError(f"`{self.name}`: {error}") from None

    def _text(self, value: Any) -> Any:
        """A text or path; neither has a NUL or what stands for no bytes (io/file_names.py)."""
        is_path = self.type is Path
        if not isinstance(value, str | Path):
            self._refuse(value, "is not a path" if is_path else "is not text")
        try:
            is_possible = b"\0" not in os.fsencode(value)
        except UnicodeEncodeError:
            is_possible = False
        if not is_possible:
            self._refuse(value, "has a character that no file and no name can have")
        if is_path and not str(value):
            raise UsageError(f"`{self.name}`: the path is empty")
        if self.must_exist and _is_too_long(value):
            self._refuse(value, "is longer than the path of a file can be")
        return Path(value) if is_path else str(value)

    def _entry_name(self, name: object) -> str:
        return name if isinstance(name, str) else self._refuse(name, "is not a name")

    def _refuse(self, value: object, reason: str) -> NoReturn:
        text = shown(value)
        # Between backticks a message has no white space (errors.ARGUMENT).
        is_argument = re.fullmatch(r"[^`\s]+", text)
        named = f"`{self.name}={text}`" if is_argument else f"`{self.name}` {text}"
        raise UsageError(f"{named} {reason}")

    def canonical(self, value: Any) -> Any:
        """Return the choice that a text stands for, in any case and by any alias.

        What stands for no choice is returned as it is.
        """
        if not isinstance(value, str):
            return value
        word = value.strip().lower()
        spellings = {choice.lower(): choice for choice in self.choices if isinstance(choice, str)}
        choice = spellings.get(word) or self.aliases.get(word)
        return choice if choice in self.choices else value

    def _choice(self, value: Any) -> Any:
        value = self.canonical(value)
        kind = Integral if self.type is int else str
        if isinstance(value, bool) or not isinstance(value, kind) or value not in self.choices:
            self._refuse(value, f"is not one of {', '.join(map(str, self.choices))}")
        return self.choices[self.choices.index(value)]

    def out_of_bounds(self, value: Any) -> bool:
        """Whether a number is smaller than the least or larger than the largest."""
        if self.minimum is not None and (
            value <= self.minimum if self.exclusive_minimum else not value >= self.minimum
        ):
            return True
        return self.maximum is not None and not value <= self.maximum

    @property
    def bounds(self) -> str:
        """The range as click writes it: `x>=2`, `1<=x<=16`; empty where there is none."""
        less = "<" if self.exclusive_minimum else "<="
        if self.minimum is None:
            return "" if self.maximum is None else f"x<={self.maximum}"
        if self.maximum is None:
            return f"x{less.replace('<', '>')}{self.minimum}"
        return f"{self.minimum}{less}x<={self.maximum}"


def accepted_values(options: Iterable[Option], values: Mapping[str, Any]) -> dict[str, Any]:
    """Check the values of an API call and return them in the types that the code works with.

    Args:
        options: The declarations.
        values: Values by the names of the options; None stands for an option that is not given.

    Returns:
        The options that are given: sizes in bytes, paths as Path, choices as they are declared.

    Raises:
        UsageError: A name is not declared, or an option refuses its value.
    """
    declared = {option.name: option for option in options}
    for name in values:
        if name not in declared:
            raise UsageError(f"no option {name!r}; there are {', '.join(declared)}")
    return {
        name: declared[name].accept(value) for name, value in values.items() if value is not None
    }


def defaults(options: Sequence[Option]) -> dict[str, Any]:
    """The options' default values, in the types that the code works with."""
    return accepted_values(options, {option.name: option.default for option in options})


def parse_size(value: int | float | str) -> int:
    """Return the bytes that 5GB, 500 MB, 512MiB or a plain number mean, at least one.

    Raises ValueError for anything else, and for text without a unit that can hardly mean bytes.
    """
    try:
        text = str(value).strip()
    except ValueError:  # a whole number of more than 4300 digits
        text = "the number"
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]I?)?(B?)", text.upper())
    size = 0
    if match and len(match[1]) < 20:
        has_unit = bool(match[2] or match[3])
        is_bare = isinstance(value, str | float) and not has_unit
        if is_bare and float(match[1]) and ("." in text or int(text) < LEAST_BARE_SIZE):
            unit = "GB" if float(text) < 100 else "MB"
            raise ValueError(f"{text} bytes? write {text}{unit}")
        size = int(float(match[1]) * _UNITS[match[2] or ""])
    if not 1 <= size <= LARGEST_SIZE:
        quoted = repr(abridged(text))
        raise ValueError(f"{quoted} is not a size; write 5GB, 500MB or a number of bytes")
    return size


def _is_too_long(path: str | Path) -> bool:
    """Whether this system has no file with such a path, as it or a name in it is too long."""
    try:
        Path(path).lstat()
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    return False


def shown(value: Any) -> str:
    """A value as a message shows it, text in double quotes and shortened: `4`, `"fast"`."""
    if isinstance(value, str | Path):
        return f'"{abridged(str(value))}"'
    try:
        return abridged(repr(value))
    except Exception:  # a whole number of more than 4300 digits, or an object of the caller's
        return f"a value of type {type(value).__name__}"
