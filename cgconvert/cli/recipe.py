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
from typing import Any

import yaml

from cgconvert.calibrate.preset import FAST, PRESETS
from cgconvert.calibrate.request import QUANTIZED
from cgconvert.codecs.matmul_nbits import BLOCK_SIZES
from cgconvert.errors import InputError
from cgconvert.formats.gguf.types import TYPES
from cgconvert.formats.onnx.variant import ACCURACY_LEVELS, CLIENTS, TARGETS
from cgconvert.model.device import DEVICES
from cgconvert.runtimes import RUNTIMES
from cgconvert.verify.thresholds import parse_bound

__all__ = ["STEPS", "Recipe", "Step", "find", "load"]

BLOCKS: Mapping[str, type | tuple[Any, ...]] = {
    "block_size": BLOCK_SIZES,
    "symmetric": bool,
    "accuracy_level": ACCURACY_LEVELS,
}
STEPS: Mapping[str, Mapping[str, type | tuple[Any, ...]]] = {
    "to-hf": {
        "output": str,
        "dtype": ("float16", "bfloat16", "float32"),
        "layout": ("codegen", "phi"),
        "max_shard_size": str,
    },
    "to-onnx": {
        "output": str,
        "dtype": ("float32", "float16"),
        "bits": (4, 8),
        **BLOCKS,
        "client": CLIENTS,
        "target": TARGETS,
    },
    "to-gguf": {"output": str, "type": tuple(TYPES)},
    "quantize": {
        "output": str,
        "bits": (4, 8),
        "type": QUANTIZED,
        "max_size": str,
        "bpw": float,
        "max_kl": float,
        "tensor_type": dict,
        "effort": (FAST, *PRESETS),
        "calibration": str,
        "imatrix": str,
        "save_imatrix": str,
        "device": DEVICES,
        "format": ("gguf", "onnx"),
        **BLOCKS,
    },
    "verify": {
        "device": DEVICES,
        "runtime": tuple(name for table in RUNTIMES.values() for name in table),
        "text": str,
        "text_tokens": int,
        "report": str,
    },
}
"""The steps, and for each option its type or its choices."""

TOP = {
    "source": str, "tokenizer": str, "config": str, "mp_num": int, "step": int, "revision": str,
    "description": str, "steps": list, "thresholds": dict,
}  # fmt: skip
ONE_OF = {"quantize": ("bits", "type", "max_size", "bpw", "max_kl")}
NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
SIZES = ("max_shard_size", "max_size")
"""Options that a bare number of bytes is as good for as text."""

MAX_BYTES = 1 << 16
"""The shipped ones have some hundred; PyYAML takes seconds for a megabyte."""


@dataclass(frozen=True)
class Step:
    """One command and its options; `line` is where it stands, from 1."""

    command: str
    options: Mapping[str, Any]
    line: int


@dataclass(frozen=True)
class Recipe:
    """What a recipe says. `thresholds` is by stored type, then by check; None is reported only."""

    path: Path
    source: str
    steps: tuple[Step, ...]
    reading: Mapping[str, Any] = field(default_factory=dict)
    thresholds: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)


def find(given: str) -> Path:
    """A recipe by path, or by the name of one that cgconvert brings along."""
    path = Path(given)
    if path.is_file():
        return path
    shipped = _shipped_folder() / f"{path.stem}.yaml"
    if path.name in (shipped.stem, shipped.name) and shipped.is_file():
        return shipped
    known = ", ".join(sorted(p.stem for p in shipped.parent.glob("*.yaml")))
    raise InputError(f"{given}: no such recipe; shipped are {known}")


def _shipped_folder() -> Path:
    """In an installed package inside it, in a checkout at its top."""
    here = Path(__file__).resolve().parents[1]
    return here / "recipes" if (here / "recipes").is_dir() else here.parent / "recipes"


def load(path: Path, known_bounds: Mapping[str, set[str]] | None = None) -> Recipe:
    """Read and check a recipe. Raises InputError naming the file, the line and the mistake."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: too large for a recipe")
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
    def __init__(self, path: Path, known_bounds: Mapping[str, set[str]] | None) -> None:
        self.path, self.known_bounds = path, known_bounds

    def recipe(self, root: yaml.Node | None) -> Recipe:
        if root is None:
            raise InputError(f"{self.path}: is empty; a recipe has source and steps")
        fields = self.mapping(root, "a recipe")
        for name, (key, value) in fields.items():
            if name not in TOP:
                self.fail(key, f"{name!r} is not part of a recipe; there are {', '.join(TOP)}")
            if TOP[name] in (str, int):
                self.scalar(value, name, TOP[name])
        for name in ("source", "steps"):
            if name not in fields:
                self.fail(root, f"{name} is missing")
        reading = ("tokenizer", "config", "mp_num", "step", "revision")
        return Recipe(
            path=self.path,
            source=self.scalar(fields["source"][1], "source", str),
            steps=self.steps(fields["steps"][1]),
            reading={n: self.scalar(fields[n][1], n, TOP[n]) for n in reading if n in fields},
            thresholds=self.thresholds(fields["thresholds"][1]) if "thresholds" in fields else {},
        )

    def steps(self, node: yaml.Node) -> tuple[Step, ...]:
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self.fail(node, "steps is not a list of commands")
        return tuple(self.step(entry) for entry in node.value)

    def step(self, node: yaml.Node) -> Step:
        key: yaml.Node = node
        value: yaml.Node | None = None
        if isinstance(node, yaml.ScalarNode):
            command = str(node.value)
        else:
            entry = self.mapping(node, "a step")
            if len(entry) != 1:
                self.fail(node, "a step is one command and its options")
            command, (key, value) = next(iter(entry.items()))
        if command not in STEPS:
            self.fail(key, f"no step {command!r}; there are {', '.join(STEPS)}")
        options = {}
        if value is not None and not self.is_null(value):
            for name, (at, node_) in self.mapping(value, f"the options of {command}").items():
                name = name.replace("-", "_")
                if name not in STEPS[command]:
                    known = ", ".join(STEPS[command])
                    self.fail(at, f"{command} has no option {name!r}; it has {known}")
                options[name] = self.option(node_, name, STEPS[command][name])
        one = ONE_OF.get(command, ())
        if one and len(options.keys() & set(one)) != 1:
            self.fail(key, f"{command} needs one of {', '.join(one)}")
        return Step(command, options, key.start_mark.line + 1)

    def option(self, node: yaml.Node, name: str, wanted: Any) -> Any:
        if wanted is not dict:
            return self.scalar(node, name, wanted)
        entries = self.mapping(node, name).items()
        return {key: self.scalar(value, key, str) for key, (_, value) in entries}

    def thresholds(self, node: yaml.Node) -> dict[str, dict[str, float | None]]:
        found: dict[str, dict[str, float | None]] = {}
        for kind, (key, value) in self.mapping(node, "thresholds").items():
            if self.known_bounds is not None and kind not in self.known_bounds:
                self.fail(key, f"no type {kind!r}; there are {', '.join(self.known_bounds)}")
            found[kind] = {}
            for check, (at, number) in self.mapping(value, f"thresholds of {kind}").items():
                known = {check} if self.known_bounds is None else self.known_bounds[kind]
                try:
                    found[kind][check] = parse_bound(
                        check, self.plain(number, check), sorted(known)
                    )
                except ValueError as error:
                    self.fail(at, f"{kind}: {error}")
        return found

    def mapping(self, node: yaml.Node, what: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            self.fail(node, f"{what} is not a mapping of names to values")
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.fail(key, f"a name in {what} is not a word")
            if key.value in found:
                self.fail(key, f"{key.value!r} stands twice")
            found[key.value] = (key, value)
        return found

    def plain(self, node: yaml.Node, name: str) -> Any:
        """The value of a scalar; () for a list, a mapping and other tags, as no option has it."""
        if isinstance(node, yaml.ScalarNode) and node.tag.startswith("tag:yaml.org,2002:"):
            try:
                return yaml.SafeLoader("").construct_object(node)
            except Exception:  # a tag that does not fit its text fails in many ways
                self.fail(node, f"{name} has a value that is not plain YAML")
        return ()

    def scalar(self, node: yaml.Node, name: str, wanted: Any) -> Any:
        value = self.plain(node, name)
        if isinstance(wanted, tuple):
            if value not in wanted or isinstance(value, bool):
                self.fail(node, f"{name} is one of {', '.join(map(str, wanted))}")
        elif wanted is str and isinstance(value, int | float) and name in SIZES:
            return str(value)
        elif wanted is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        elif not isinstance(value, wanted) or isinstance(value, bool) != (wanted is bool):
            kind = NAMES[wanted]
            self.fail(node, f"{name} is not {kind}")
        return value

    @staticmethod
    def is_null(node: yaml.Node) -> bool:
        return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"

    def fail(self, node: yaml.Node, problem: str) -> Any:
        raise InputError(f"{self.path}:{node.start_mark.line + 1}: {problem}")
