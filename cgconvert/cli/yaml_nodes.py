"""The YAML of one recipe as nodes, which know their lines, so that every error names its line."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from itertools import islice, product
from pathlib import Path
from typing import Any, NoReturn

import yaml

from cgconvert.cli.shipped import STDIN
from cgconvert.errors import InputError
from cgconvert.io.reading import read_bytes

__all__ = ["Entries", "Nodes", "compose"]

MAX_BYTES = 1 << 16
"""The largest recipe that is read. Shipped ones have a few hundred bytes; PyYAML takes seconds for
a megabyte."""

MAX_COMBINATIONS = 256
"""The largest matrix: the product of the numbers of values."""

REFERENCE = re.compile(r"\$\{\{([^{}]*)\}\}")
"""A value of the matrix in a text: `${{ matrix.type }}`. It matches in one way only, so its time is
linear in the text."""

SIGNS = re.compile(r"'(\W{1,3}|<[a-z ]+>)'")
"""What a message of PyYAML quotes of its own grammar."""

QUOTED = re.compile(r",? ?(but )?(found )?(['\"]).*\3.*", re.DOTALL)
"""What a message of PyYAML quotes of a file, which may be no recipe at all, and what follows."""

Entries = Mapping[str, tuple[yaml.Node, yaml.Node]]
"""Names and values of a mapping, by the text of the name."""


def compose(path: Path) -> tuple[str, yaml.Node | None]:
    """Read a file, or the standard input for `-`, as YAML; return its label and its root.

    Only nodes are made; tags have no effect. Raises InputError, with the line where there is one,
    if the file cannot be read, is too large or is not YAML.
    """
    label = "stdin" if path == STDIN else str(path)
    try:
        raw = _read(path)
        if len(raw) > MAX_BYTES:
            raise InputError(f"{label}: is too large for a recipe: more than {MAX_BYTES:,} bytes")
        return label, yaml.compose(raw.decode("utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise InputError(f"{label}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{label}: is not UTF-8 text") from error
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise InputError(f"{label}{place}: is not YAML{_problem(error)}") from error


def _problem(error: Exception) -> str:
    """What PyYAML says of an error, without the words of the file that it quotes."""
    problem = str(getattr(error, "problem", None) or "")
    if {"'", '"'} & set(SIGNS.sub("", problem)):
        problem = QUOTED.sub("", problem)
    return f": {' '.join(problem.split())}" if problem.strip() else ""


def _read(path: Path) -> bytes:
    """Read at most MAX_BYTES and one more; the path may be a pipe, whose size is not known."""
    if path == STDIN:
        if sys.stdin is None:  # the shell's <&-
            raise InputError("stdin: is closed; give the recipe as a file")
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    return read_bytes(path, MAX_BYTES, kind="a recipe")


class Nodes:
    """Reads values out of nodes of one file, with the values that a matrix gives to names.

    Attributes:
        label: The name of the file in messages.
        values: The nodes that stand for `${{ matrix.NAME }}`, by name.
        used: The names of those that were read.
    """

    def __init__(self, label: str, values: Mapping[str, yaml.Node] | None = None) -> None:
        self.label, self.values = label, dict(values or {})
        self.used: set[str] = set()

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

    def combinations(self, node: yaml.Node) -> list[dict[str, yaml.Node]]:
        """The combinations of a matrix, the last name changing first: a node for each name."""
        axes: dict[str, list[yaml.Node]] = {}
        for written, (key, value) in self.mapping(node, "matrix").items():
            name = written.replace("-", "_")
            if name in axes:
                self.fail(key, f"{name!r} stands twice in the matrix")
            axes[name] = value.value if isinstance(value, yaml.SequenceNode) else [value]
            if not axes[name]:
                self.fail(value, f"{name} has no value in the matrix")
        if not axes:
            self.fail(node, "the matrix is empty: write a name and its values")
        combinations = list(islice(product(*axes.values()), MAX_COMBINATIONS + 1))
        if len(combinations) > MAX_COMBINATIONS:
            self.fail(node, f"the matrix has more than {MAX_COMBINATIONS} combinations")
        return [dict(zip(axes, nodes, strict=True)) for nodes in combinations]

    def plain(self, node: yaml.Node, name: str) -> Any:
        """The value of a scalar of YAML's own types; lists, mappings and other tags are refused.

        Where it names a value of the matrix, that takes its place.
        """
        node = self.resolve(node)
        if isinstance(node, yaml.SequenceNode):
            advice = f"; for a step for each value write matrix: {{{name}: [..., ...]}}"
            self.fail(node, f"{name} must be a single value{advice if node.value else ''}")
        if not isinstance(node, yaml.ScalarNode):
            self.fail(node, f"{name} must be a single value")
        if not node.tag.startswith("tag:yaml.org,2002:"):
            self.fail(node, f"{name} has a value that is not plain YAML")
        try:
            return yaml.SafeLoader("").construct_object(node)
        except Exception:  # a tag that does not fit its text fails in many ways
            self.fail(node, f"{name} has a value that is not plain YAML")

    def resolve(self, node: yaml.Node) -> yaml.Node:
        """The node with `${{ matrix.NAME }}` replaced. Alone it is the value's own node."""
        if not isinstance(node, yaml.ScalarNode) or "${{" not in node.value:
            return node
        if whole := REFERENCE.fullmatch(node.value):
            return self._value(node, whole[1])
        text = REFERENCE.sub(lambda match: str(self._value(node, match[1]).value), node.value)
        return yaml.ScalarNode(
            "tag:yaml.org,2002:str", text, node.start_mark, node.end_mark, node.style
        )

    def _value(self, node: yaml.Node, expression: str) -> yaml.ScalarNode:
        expression = expression.strip()
        root, _, name = expression.partition(".")
        name = name.replace("-", "_")
        value = self.values.get(name) if root == "matrix" else None
        if value is None:
            names = ", ".join(f"${{{{ matrix.{known} }}}}" for known in self.values)
            problem = f"${{{{ {expression} }}}} is not defined; there is {names or 'no matrix'}"
            self.fail(node, problem)
        self.used.add(name)
        if not isinstance(value, yaml.ScalarNode):
            self.fail(
                value, f"{name} must be a single value to be used as ${{{{ matrix.{name} }}}}"
            )
        return value

    @staticmethod
    def is_null(node: yaml.Node) -> bool:
        return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"

    def fail(self, node: yaml.Node, problem: str) -> NoReturn:
        """Raise InputError with the file and the line of `node`."""
        raise InputError(f"{self.label}:{node.start_mark.line + 1}: {problem}")
