"""What an option is. Every option is declared once, as an `Option`, beside the code that it steers.

The command line (`cli/options.py`) makes its flags from the declarations, recipes
(`cli/recipe.py`) their schema, and a test compares them with the signatures of the Python API.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cgconvert.errors import UsageError

__all__ = [
    "AUTO",
    "FLOAT_ALIASES",
    "ByteSize",
    "Option",
    "accepted_values",
    "defaults",
    "parse_size",
    "shown",
]

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
        parse: Reads one value from the text on the command line; for a Mapping, one entry as a
            pair of name and value. Raises ValueError saying what is wrong. None: the text is read
            as `type`.
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
    parse: Callable[[str], Any] | None = None
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
        """Return `value` in the type that the code works with: bytes of a size, a Path.

        Raises UsageError unless it is one of the choices and within the bounds.
        """
        if self.choices:
            return self._choice(value)
        if self.word is not None and isinstance(value, str):
            if value != self.word:
                raise UsageError(f"`{self.name}={shown(value)}` is no number, nor {self.word}")
            return value
        if self.out_of_bounds(value):
            raise UsageError(f"`{self.name}={shown(value)}` is not in the range {self.bounds}")
        if self.repeatable:
            return tuple(value)
        if self.type is Path:
            return Path(value)
        if self.type is ByteSize:
            try:
                return parse_size(value)
            except ValueError as error:
                raise UsageError(f"`{self.name}`: {error}") from None
        return value

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
        if value not in self.choices or isinstance(value, bool):
            allowed = ", ".join(map(str, self.choices))
            raise UsageError(f"`{self.name}={shown(value)}` is not one of {allowed}")
        return value

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
    text = str(value).strip()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?(B?)", text.upper())
    size = 0
    if match and len(match[1]) < 20:
        has_unit = bool(match[2] or match[3])
        is_bare = isinstance(value, str | float) and not has_unit
        if is_bare and float(match[1]) and ("." in text or int(text) < LEAST_BARE_SIZE):
            unit = "GB" if float(text) < 100 else "MB"
            raise ValueError(f"{text} bytes? write {text}{unit}")
        size = int(float(match[1]) * _UNITS[match[2] or ""])
    if size < 1:
        raise ValueError(f"{value!r} is not a size; write 5GB, 500MB or a number of bytes")
    return size


def shown(value: Any) -> str:
    """A value as a message shows it, text in double quotes: `4`, `"fast"`."""
    return f'"{value}"' if isinstance(value, str | Path) else repr(value)
