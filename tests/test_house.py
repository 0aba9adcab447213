"""Rules for the whole tree: which way imports run, and what modules and names must say."""

from __future__ import annotations

import ast
import re
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

from tests.support.generated_docs import layers

ROOT = Path(__file__).resolve().parents[1]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]


def python_files(*folders: str) -> list[Path]:
    """The Python files under these folders of the repository, without what npm installed."""
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path for path in paths if "node_modules" not in path.parts)


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
