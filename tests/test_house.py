"""Rules for the whole tree: which way imports run, and what modules and names must say."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

from tests.support.generated_docs import layers

ROOT = Path(__file__).resolve().parents[1]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]

EMPTY_NAMES = frozenset({"found", "wanted", "some", "told", "given", "said", "how"})
"""Names that say that something was found or given, and not what."""

DANGLING = frozenset({"Of", "As", "Where", "Whose", "With", "By", "In"})
"""First words of a docstring that leaves out its subject."""


def python_files(*folders: str) -> list[Path]:
    """The Python files under these folders of the repository, without what npm installed."""
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path for path in paths if "node_modules" not in path.parts)


def identifiers(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every name that a module itself gives, with its line: to variables, arguments, attributes,
    functions, classes and imports.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield node.lineno, name
            case ast.ClassDef(name=name) | ast.ExceptHandler(name=str(name)):
                yield node.lineno, name
            case ast.arg(arg=name) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                yield from ((node.lineno, alias.asname) for alias in aliases if alias.asname)
            case _:
                pass


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every docstring, and every text under an assignment, with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield node.lineno, text
            case _:
                pass


def test_each_folder_imports_only_what_lies_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert not [key for contract in CONTRACTS["contracts"] for key in contract if "ignore" in key]
    status = lint_imports(str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_no_module_is_part_of_an_import_circle() -> None:
    graph = grimp.build_graph("cgconvert", cache_dir=None)
    imports = {
        module: graph.find_modules_directly_imported_by(module) for module in sorted(graph.modules)
    }
    assert len(imports) > 50
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


def test_every_module_says_what_it_is_for() -> None:
    undocumented = [
        path.relative_to(ROOT).as_posix()
        for path in python_files("cgconvert", "tests", "benchmarks")
        if (source := path.read_text("utf-8")).strip() and not ast.get_docstring(ast.parse(source))
    ]
    assert undocumented == []


def test_every_layer_is_described() -> None:
    described = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/design.md").read_text("utf-8"), re.M)
    folders = re.findall("`(.*?)`", "".join(described))
    assert [name for layer in layers() for name in layer if name not in folders] == ["__main__"]


def test_names_say_what_they_hold() -> None:
    empty = [
        f"{path.relative_to(ROOT).as_posix()}:{line}: {name}"
        for path in python_files("cgconvert", "tests", "benchmarks", "docs")
        for line, name in identifiers(ast.parse(path.read_text("utf-8")))
        if name.strip("_") in EMPTY_NAMES
    ]
    assert empty == []


def test_docstrings_begin_with_their_subject_or_a_verb() -> None:
    dangling = [
        f"{path.relative_to(ROOT).as_posix()}:{line}: {text.strip().splitlines()[0]}"
        for path in python_files("cgconvert", "tests", "benchmarks", "docs")
        for line, text in docstrings(ast.parse(path.read_text("utf-8")))
        if text.split()[:1] and text.split()[0] in DANGLING
    ]
    assert dangling == []


def test_the_package_is_marked_as_typed() -> None:
    assert (ROOT / "cgconvert" / "py.typed").is_file()


def test_modules_that_are_imported_by_name_lie_below_too() -> None:
    """Registries import classes by their names, which import-linter does not see."""
    level = {name: depth for depth, layer in enumerate(layers()) for name in layer}
    upward = []
    for path in python_files("cgconvert"):
        folder = path.relative_to(ROOT / "cgconvert").parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Constant(value=str(text)) if folder in level:
                    name = re.match(r"cgconvert\.(\w+)[\w.:]*$", text)
                    if name and level.get(name[1], level[folder]) < level[folder]:
                        upward.append(f"{path.relative_to(ROOT).as_posix()}:{node.lineno}: {text}")
                case _:
                    pass
    assert upward == []
