"""Recipes: a source, the steps to take, the thresholds to hold, in one YAML file.

    source: codegen-350M-mono
    steps:
      - to-hf: {dtype: float16}
      - quantize: {bits: 4}
      - verify: {}
    thresholds:
      gguf Q4_0: {logits.kl_mean: 0.1, logits.top1_sure: none}

A step is a command of cgconvert with its options, dashes or underscores alike. Mistakes are
reported with the line they stand on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from cgconvert.api.conversions import conversions
from cgconvert.api.declarations import OUTPUT, READ, VERIFY
from cgconvert.errors import InputError
from cgconvert.options import ByteSize, Option, parse_size
from cgconvert.verification.thresholds import parse_bound

__all__ = ["Recipe", "Step", "find", "load", "steps"]

RECIPE_WIDE = ("reference", "threshold")
"""Options of `verify` that its step does not take: the recipe's source and thresholds hold for all
steps."""

TOP = {
    "source": Option(name="source"),
    **{option.name: option for option in READ},
    "description": Option(name="description"),
    "steps": None,
    "thresholds": None,
}
"""The top-level keys of a recipe, with the option that each is; None for those that are none."""

TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false"}

MAX_BYTES = 1 << 16
"""The largest recipe that is read. Shipped ones have a few hundred bytes; PyYAML takes seconds for
a megabyte."""


@dataclass(frozen=True)
class Step:
    """A command with its options; `line` is its line in the recipe, counted from 1."""

    command: str
    options: Mapping[str, Any]
    line: int


@dataclass(frozen=True)
class Recipe:
    """A recipe that was read and checked.

    `source_options` say how its source is read, as the arguments of `load` do. `thresholds` holds
    bounds by stored type ("gguf Q4_0"), then by name of check; None: the value is not judged.
    """

    path: Path
    source: str
    steps: tuple[Step, ...]
    source_options: Mapping[str, Any] = field(default_factory=dict)
    thresholds: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)


def steps() -> dict[str, dict[str, Option]]:
    """The commands that can be a step, each with its options by name."""
    table = {name: (OUTPUT, *conversion.options) for name, conversion in conversions().items()}
    table["verify"] = tuple(option for option in VERIFY if option.name not in RECIPE_WIDE)
    return {name: {option.name: option for option in options} for name, options in table.items()}


def find(name: str) -> Path:
    """Find a recipe by its path, or by the name of one that cgconvert ships.

    Raises InputError if there is none.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = _shipped_folder() / f"{path.stem}.yaml"
    if path.name in (shipped.stem, shipped.name) and shipped.is_file():
        return shipped
    known = ", ".join(sorted(p.stem for p in shipped.parent.glob("*.yaml")))
    raise InputError(f"{name}: no such recipe; shipped are {known}")


def _shipped_folder() -> Path:
    """The folder of shipped recipes: inside an installed package, at the top of a checkout."""
    here = Path(__file__).resolve().parents[1]
    return here / "recipes" if (here / "recipes").is_dir() else here.parent / "recipes"


def load(path: Path, known_bounds: Mapping[str, set[str]] | None = None) -> Recipe:
    """Read and check a recipe.

    `known_bounds` has the checks that each stored type has a bound for; without it thresholds may
    name any type and any check. Raises InputError naming the file, the line and the mistake.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: is too large for a recipe: more than {MAX_BYTES:,} bytes")
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text") from error
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "is not YAML"
        raise InputError(f"{path}{line}: {problem}") from error
    return _Reader(path, known_bounds).recipe(root)


class _Reader:
    """Turns the YAML nodes of one file into a recipe; nodes know their lines, for messages."""

    def __init__(self, path: Path, known_bounds: Mapping[str, set[str]] | None) -> None:
        self.path, self.known_bounds = path, known_bounds

    def recipe(self, root: yaml.Node | None) -> Recipe:
        if root is None:
            raise InputError(f"{self.path}: is empty; a recipe has source and steps")
        fields = self.mapping(root, "a recipe")
        for name, (key, value) in fields.items():
            if name not in TOP:
                self.fail(key, f"{name!r} is not part of a recipe; there are {', '.join(TOP)}")
            if (option := TOP[name]) is not None:
                self.source_option(value, option)
        for name in ("source", "steps"):
            if name not in fields:
                self.fail(root, f"{name} is missing")
        recipe = Recipe(
            path=self.path,
            source=str(fields["source"][1].value),
            steps=self.steps(fields["steps"][1]),
            source_options={
                o.name: self.source_option(fields[o.name][1], o) for o in READ if o.name in fields
            },
            thresholds=self.thresholds(fields["thresholds"][1]) if "thresholds" in fields else {},
        )
        first = recipe.steps[0]
        if first.command == "verify":
            problem = "verify has nothing to verify: no step before it writes an artefact"
            raise InputError(f"{self.path}:{first.line}: {problem}")
        return recipe

    def steps(self, node: yaml.Node) -> tuple[Step, ...]:
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self.fail(node, "steps must be a list of commands")
        return tuple(self.step(entry) for entry in node.value)

    def step(self, node: yaml.Node) -> Step:
        """Read a step: the name of a command, or a mapping of that name to its options."""
        key: yaml.Node = node
        value: yaml.Node | None = None
        if isinstance(node, yaml.ScalarNode):
            command = str(node.value)
        else:
            entry = self.mapping(node, "a step")
            if len(entry) != 1:
                self.fail(node, "a step is one command and its options")
            command, (key, value) = next(iter(entry.items()))
        known = steps()
        if command not in known:
            self.fail(key, f"no step {command!r}; there are {', '.join(known)}")
        options = {}
        if value is not None and not self.is_null(value):
            entries = self.mapping(value, f"the options of {command}")
            for written, (name_node, value_node) in entries.items():
                name = written.replace("-", "_")
                if name not in known[command]:
                    names = ", ".join(known[command])
                    self.fail(name_node, f"{command} has no option {name!r}; it has {names}")
                options[name] = self.option(value_node, known[command][name])
        conversion = conversions().get(command)
        exclusive = conversion.exactly_one_of if conversion else ()
        if exclusive and len(options.keys() & set(exclusive)) != 1:
            self.fail(key, f"{command} needs one of {', '.join(exclusive)}")
        return Step(command, options, key.start_mark.line + 1)

    def source_option(self, node: yaml.Node, option: Option) -> Any:
        """The checked value of a top-level option; a repeatable one takes one value or a list."""
        if option.repeatable:
            nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
            return tuple(self.scalar(entry, option) for entry in nodes)
        return self.scalar(node, option)

    def option(self, node: yaml.Node, option: Option) -> Any:
        if not option.is_mapping:
            return self.scalar(node, option)
        entry = Option(name=option.name)
        return {
            key: self.scalar(value, entry)
            for key, (_, value) in self.mapping(node, option.name).items()
        }

    def thresholds(self, node: yaml.Node) -> dict[str, dict[str, float | None]]:
        bounds: dict[str, dict[str, float | None]] = {}
        for kind, (key, value) in self.mapping(node, "thresholds").items():
            if self.known_bounds is not None and kind not in self.known_bounds:
                self.fail(key, f"no type {kind!r}; there are {', '.join(self.known_bounds)}")
            bounds[kind] = {}
            for check, (at, number) in self.mapping(value, f"thresholds of {kind}").items():
                known = {check} if self.known_bounds is None else self.known_bounds[kind]
                try:
                    bounds[kind][check] = parse_bound(
                        check, self.plain(number, check), sorted(known)
                    )
                except ValueError as error:
                    self.fail(at, f"{kind}: {error}")
        return bounds

    def mapping(self, node: yaml.Node, name: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            self.fail(node, f"{name} must be a mapping of names to values")
        entries: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.fail(key, f"a name in {name} is not a word")
            if key.value in entries:
                self.fail(key, f"{key.value!r} stands twice")
            entries[key.value] = (key, value)
        return entries

    def plain(self, node: yaml.Node, name: str) -> Any:
        """The value of a scalar of YAML's own types; lists, mappings and other tags are refused."""
        if not isinstance(node, yaml.ScalarNode):
            self.fail(node, f"{name} must be a single value")
        if not node.tag.startswith("tag:yaml.org,2002:"):
            self.fail(node, f"{name} has a value that is not plain YAML")
        try:
            return yaml.SafeLoader("").construct_object(node)
        except Exception:  # a tag that does not fit its text fails in many ways
            self.fail(node, f"{name} has a value that is not plain YAML")

    def scalar(self, node: yaml.Node, option: Option) -> Any:
        """The checked value of an option; a size that is a number becomes text, as 5GB is."""
        value, name = self.plain(node, option.name), option.name
        if option.choices:
            if value not in option.choices or isinstance(value, bool):
                self.fail(node, f"{name} is one of {', '.join(map(str, option.choices))}")
            return value
        if option.word is not None and value == option.word:
            return value
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if option.type is ByteSize and (number or isinstance(value, str)):
            try:
                parse_size(str(value))
            except ValueError as error:
                self.fail(node, f"{name}: {error}")
            return str(value)
        if option.type is float and number:
            value = float(value)
        expected = option.type if option.type in TYPE_NAMES else str
        if not isinstance(value, expected) or isinstance(value, bool) != (expected is bool):
            word = f", nor {option.word}" if option.word is not None else ""
            self.fail(node, f"{name} is not {TYPE_NAMES.get(expected, 'text')}{word}")
        if option.out_of_bounds(value):
            self.fail(node, f"{name} {value} is not in the range {option.bounds}")
        return value

    @staticmethod
    def is_null(node: yaml.Node) -> bool:
        return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"

    def fail(self, node: yaml.Node, problem: str) -> NoReturn:
        """Raise InputError with the file and the line of `node`."""
        raise InputError(f"{self.path}:{node.start_mark.line + 1}: {problem}")
