"""Recipes: a YAML file that names a source and lists commands with options.

The steps are those of `conversions` and `verify`, their options are the commands' own, and
`thresholds` overrides bounds of `verify` by stored type, as it prints them:

    source: codegen-350M-mono
    steps:
      - to-onnx: {dtype: float32}
      - quantize: {effort: fast, matrix: {type: [Q8_0, Q4_K_M]}}
      - verify
    thresholds:
      gguf Q4_K_M: {logits.kl_mean: 0.05}

A `matrix` stands for several steps, one for each combination of its values. At the top of a recipe
it stands for several recipes, where values are also named as `${{ matrix.NAME }}`.

Whatever is not expected is an error with the file and the line, before anything is converted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from cgconvert.api.conversion_table import conversions
from cgconvert.api.declarations import CACHE, OUTPUT, READ, VERIFY, WRITE
from cgconvert.cli.yaml_nodes import Entries, Nodes, compose
from cgconvert.errors import InputError, UsageError, in_words
from cgconvert.options import DECIMAL_NUMBER, ByteSize, Option
from cgconvert.verification.thresholds import parse_bound

__all__ = ["Recipe", "Step", "load", "steps"]

MATRIX = "matrix"

SOURCE = Option(name="source")

DESCRIPTION = Option(name="description")

TOP = {
    "source": SOURCE,
    **{option.name: option for option in (*READ, *CACHE)},
    "description": DESCRIPTION,
    "steps": None,
    MATRIX: None,
    "thresholds": None,
}
"""The top-level keys of a recipe, with the option that each is; None for those that are none."""

PER_MODEL = {"source": SOURCE, **{option.name: option for option in READ}}
"""The options that a matrix at the top of a recipe sets, as if they stood there alone."""


MAX_STEPS = 512
"""The most steps of a recipe, each combination of a matrix counted. Planning takes milliseconds for
each of them."""

TOO_MANY_STEPS = f"there are more than {MAX_STEPS} steps; make several recipes of it"


@dataclass(frozen=True)
class Step:
    """A command with its options; `line` is its line in the recipe, counted from 1.

    Options of writing and reading are among them, as those of a command are.
    """

    command: str
    options: Mapping[str, Any]
    line: int

    @property
    def title(self) -> str:
        """The command and its options, as a line names the step: `quantize bits 4, format onnx`."""
        options = ", ".join(f"{name} {_shown(value)}" for name, value in self.options.items())
        return f"{self.command} {options}".strip()


@dataclass(frozen=True)
class Recipe:
    """A recipe that was read and checked.

    `label` is how messages call its file. `source_options` say how its source is read, as the
    arguments of `load` do. `thresholds` holds bounds by stored type ("gguf Q4_0"), then by name of
    check; None: the value is not judged. `cache` says whether cgconvert's cache is used.
    """

    label: str
    source: str
    steps: tuple[Step, ...]
    source_options: Mapping[str, Any] = field(default_factory=dict)
    thresholds: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    description: str = ""
    cache: bool = True


def steps() -> dict[str, dict[str, Option]]:
    """The commands that can be a step, each with its options by name."""
    table = {
        name: (OUTPUT, *conversion.options, *WRITE, *READ, *CACHE)
        for name, conversion in conversions().items()
    }
    table["verify"] = (*VERIFY, *READ, *CACHE)
    return {name: {option.name: option for option in options} for name, options in table.items()}


def load(
    path: Path, known_bounds: Mapping[str, set[str]] | None = None, source: str | None = None
) -> tuple[Recipe, ...]:
    """Read and check a recipe: one, or one for each combination of the matrix at its top.

    Args:
        path: The file, or `-` for the standard input.
        known_bounds: The checks that each stored type has a bound for; without it thresholds may
            name any type and any check.
        source: Takes the place of the recipe's own source, which may be missing then.

    Raises:
        InputError: With the file, the line and the mistake.
    """
    label, root = compose(path)
    if root is None:
        raise InputError(f"{label}: is empty; a recipe has source and steps")
    if isinstance(root, yaml.MappingNode) and not {"source", "steps"} & {
        key.value for key, _ in root.value if isinstance(key, yaml.ScalarNode)
    }:
        raise InputError(f"{label}: is not a recipe: it has neither source nor steps")
    entries = Nodes(label).mapping(root, "a recipe")
    if MATRIX not in entries:
        return (_Reader(label, {}, known_bounds).recipe(root, source),)
    matrix = entries[MATRIX][1]
    combinations = Nodes(label).combinations(matrix)
    if source is not None and "source" in combinations[0]:
        combinations = _with_one_source(combinations, source)
    readers = [_Reader(label, values, known_bounds) for values in combinations]
    recipes: list[Recipe] = []
    count = 0
    for reader in readers:
        recipes.append(reader.recipe(root, source))
        count += len(recipes[-1].steps)
        if count > MAX_STEPS:
            Nodes(label).fail(matrix, TOO_MANY_STEPS)
    for written, (key, _) in Nodes(label).mapping(matrix, MATRIX).items():
        name = _name(written)
        if source is None and not any(name in reader.used for reader in readers):
            problem = (
                f"no step uses {name} of the matrix; write ${{{{ matrix.{name} }}}} where it "
                "belongs, or the matrix among the options of a step"
            )
            Nodes(label).fail(key, problem)
    return tuple(recipes)


def _with_one_source(
    combinations: Sequence[Mapping[str, yaml.Node]], source: str
) -> list[dict[str, yaml.Node]]:
    """The combinations with another source; those that differed in nothing else become one."""
    node = combinations[0]["source"]
    text = yaml.ScalarNode("tag:yaml.org,2002:str", source, node.start_mark, node.end_mark)
    replaced = [{**values, "source": text} for values in combinations]
    return list({tuple(map(id, values.values())): values for values in replaced}.values())


class _Reader(Nodes):
    """Turns the YAML nodes of one file into a recipe, for one combination of its matrix."""

    def __init__(
        self,
        label: str,
        values: Mapping[str, yaml.Node],
        known_bounds: Mapping[str, set[str]] | None,
    ) -> None:
        super().__init__(label, values)
        self.known_bounds = known_bounds

    def recipe(self, root: yaml.Node, source: str | None) -> Recipe:
        fields = self.mapping(root, "a recipe")
        for name, (key, value) in fields.items():
            if name not in TOP:
                self.fail(key, f"{name!r} is not part of a recipe; there are {', '.join(TOP)}")
            if (option := TOP[name]) is not None and not (name == "source" and source is not None):
                self.option(value, option)
        for name in PER_MODEL.keys() & self.values.keys() - fields.keys():
            fields[name] = (self.values[name], self.values[name])
            self.used.add(name)
        for name in ("source", "steps"):
            if name not in fields and not (name == "source" and source is not None):
                self.fail(root, f"{name} is missing")
        recipe = Recipe(
            label=self.label,
            source=source or self.option(fields["source"][1], SOURCE),
            steps=self.steps(fields["steps"][1]),
            source_options={
                o.name: self.option(fields[o.name][1], o) for o in READ if o.name in fields
            },
            thresholds=self.thresholds(fields["thresholds"][1]) if "thresholds" in fields else {},
            description=self.option(fields["description"][1], DESCRIPTION)
            if "description" in fields
            else "",
            cache=self.option(fields["cache"][1], CACHE[0]) if "cache" in fields else True,
        )
        first = recipe.steps[0]
        if first.command == "verify":
            problem = "verify has nothing to verify: no step before it writes an artefact"
            raise InputError(f"{self.label}:{first.line}: {problem}")
        return recipe

    def steps(self, node: yaml.Node) -> tuple[Step, ...]:
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self.fail(node, "steps must be a list of commands")
        steps = (step for entry in node.value for step in self.expanded(entry))
        first_steps = tuple(islice(steps, MAX_STEPS + 1))
        if len(first_steps) > MAX_STEPS:
            self.fail(node, TOO_MANY_STEPS)
        return first_steps

    def expanded(self, node: yaml.Node) -> Iterator[Step]:
        """Read an entry of the list: a step, or one for each combination of its matrix.

        It is the name of a command, or a mapping of that name to the options; the matrix stands
        among the options or beside the command.
        """
        matrix: yaml.Node | None = None
        options: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        key = node
        if isinstance(node, yaml.ScalarNode):
            command = str(node.value)
        else:
            entry = self.mapping(node, "a step")
            if MATRIX in entry:
                matrix = entry.pop(MATRIX)[1]
            if len(entry) != 1:
                self.fail(node, "a step is one command and its options")
            command, (key, value) = next(iter(entry.items()))
            if not self.is_null(value):
                options = self.mapping(value, f"the options of {command}")
        if command not in steps():
            self.fail(key, f"no step {command!r}; there are {', '.join(steps())}")
        if MATRIX in options:
            if matrix is not None:
                self.fail(options[MATRIX][0], "the step has two matrices")
            matrix = options.pop(MATRIX)[1]
        if matrix is None:
            yield self.step(command, key, options)
            return
        for values in self.combinations(matrix):
            inner = _Reader(self.label, {**self.values, **values}, self.known_bounds)
            own = {name: (value, value) for name, value in values.items()}
            for name, (at, _) in options.items():
                if _name(name) in values:
                    self.fail(at, f"{name} stands among the options and in the matrix")
            yield inner.step(command, key, {**options, **own})
            self.used |= inner.used - values.keys()

    def step(self, command: str, key: yaml.Node, entries: Entries) -> Step:
        known, options = steps()[command], {}
        for written, (name_node, value_node) in entries.items():
            name = _name(written)
            if name not in known:
                names = ", ".join(known)
                self.fail(name_node, f"{command} has no option {name!r}; it has {names}")
            if name in options:
                self.fail(name_node, f"{name!r} stands twice")
            options[name] = self.option(value_node, known[name])
        conversion = conversions().get(command)
        exclusive = conversion.exactly_one_of if conversion else ()
        budgets = [name for name in exclusive if name in options]
        if len(budgets) > 1:
            both = f"{', '.join(budgets[:-1])} and {budgets[-1]}"
            self.fail(key, f"{command} needs one of {', '.join(exclusive)}; it has {both}")
        if exclusive and not budgets:
            self.fail(key, f"{command} needs one of {', '.join(exclusive)}")
        return Step(command, options, key.start_mark.line + 1)

    def option(self, node: yaml.Node, option: Option) -> Any:
        """The checked value of an option; a repeatable one takes one value or a list."""
        if option.name == "threshold":
            return self.bounds(node, None, "threshold")
        node = self.resolve(node)
        if option.is_mapping:
            return {
                key: self.accepted(value, option, partial(option.accept_entry, key))
                for key, (_, value) in self.mapping(node, option.name).items()
            }
        if option.repeatable:
            nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
            if not nodes:
                self.fail(node, f"{option.name}: the list is empty")
            return tuple(self.scalar(entry, option) for entry in nodes)
        return self.scalar(node, option)

    def thresholds(self, node: yaml.Node) -> dict[str, dict[str, float | None]]:
        bounds: dict[str, dict[str, float | None]] = {}
        for kind, (key, value) in self.mapping(node, "thresholds").items():
            if self.known_bounds is not None and kind not in self.known_bounds:
                self.fail(key, f"no type {kind!r}; there are {', '.join(self.known_bounds)}")
            bounds[kind] = self.bounds(value, kind, f"thresholds of {kind}")
        return bounds

    def bounds(self, node: yaml.Node, kind: str | None, name: str) -> dict[str, float | None]:
        """Bounds by name of check: of one stored type, or of all types if `kind` is None."""
        table, bounds = self.known_bounds, {}
        for check, (at, number) in self.mapping(node, name).items():
            if table is None:
                known = {check}
            else:
                known = set().union(*table.values()) if kind is None else table[kind]
            try:
                bounds[check] = parse_bound(check, self.plain(number, check), sorted(known))
            except ValueError as error:
                self.fail(at, f"{kind or name}: {error}")
        return bounds

    def scalar(self, node: yaml.Node, option: Option) -> Any:
        """The checked value of an option; sizes and paths stay as they are written."""
        accepted = self.accepted(node, option, option.accept_item)
        return str(self.plain(node, option.name)) if option.type in (ByteSize, Path) else accepted

    def accepted(self, node: yaml.Node, option: Option, accept: Callable[[Any], Any]) -> Any:
        """The value of a node that an option accepts; an error names its line."""
        node = self.resolve(node)
        value = self.plain(node, option.name)
        is_unquoted = isinstance(node, yaml.ScalarNode) and node.style is None
        if option.type is float and is_unquoted and isinstance(value, str):
            value = float(value) if DECIMAL_NUMBER.fullmatch(value) else value  # such as 1e-3
        try:
            return accept(value)
        except UsageError as error:
            self.fail(node, in_words(str(error)))


def _name(written: str) -> str:
    """The name of an option, which may be written with hyphens as a flag is."""
    return written.replace("-", "_")


def _shown(value: Any) -> str:
    """A value as a title has it."""
    if isinstance(value, Mapping):
        return " ".join(f"{name}={_shown(entry)}" for name, entry in value.items())
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
