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


PORTABLE_OS = frozenset(
    {
        "_exit", "close", "curdir", "devnull", "dup", "dup2", "environ", "fsdecode", "fsencode",
        "fspath", "get_terminal_size", "getpid", "listdir",
        "name", "open", "path", "pathsep", "pipe", "PathLike",
        "read", "scandir", "sep", "strerror", "walk", "O_RDONLY", "O_WRONLY",
    }
)  # fmt: skip
PORTABLE_SIGNAL = frozenset(
    {
        "default_int_handler", "getsignal", "raise_signal", "signal", "Signals", "SIG_DFL",
        "SIG_IGN", "SIGINT",
    }
)  # fmt: skip
"""What the package may use of these modules: Linux, macOS and Windows have it and mean the same."""

SYSTEM_MODULES = frozenset(
    {"fcntl", "grp", "mmap", "msvcrt", "multiprocessing", "posix", "pwd", "resource", "termios"}
)
SYSTEM_METHODS = frozenset({"chmod", "group", "hardlink_to", "owner", "rename", "symlink_to"})
"""Methods of paths that differ between systems."""

SYSTEM_PATHS = re.compile("/(proc|dev|sys|tmp|etc)/")


def system_own(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Everything in a module that not every system has, or that systems do differently."""
    allowed = {"os": PORTABLE_OS, "signal": PORTABLE_SIGNAL}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                for alias in aliases:
                    if alias.name.split(".")[0] in SYSTEM_MODULES:
                        yield node.lineno, alias.name
            case ast.ImportFrom(module=str(module), names=aliases):
                if module.split(".")[0] in {*SYSTEM_MODULES, *allowed}:
                    yield node.lineno, module
            case ast.Attribute(value=ast.Name(id=module), attr=name) if module in allowed:
                if name not in allowed[module]:
                    yield node.lineno, f"{module}.{name}"
            case ast.Attribute(value=ast.Name(id="sys"), attr="platform"):
                yield node.lineno, "sys.platform"
            case ast.Attribute(attr=name) if name in SYSTEM_METHODS:
                yield node.lineno, f".{name}"
            case ast.Constant(value=str(text)) if SYSTEM_PATHS.match(text):
                yield node.lineno, text
            case _:
                pass


def texts_without_encoding(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every call that opens a file as text and leaves its encoding to the system."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="read_text" | "write_text" as name)) if not (
                len(node.args) > (name == "write_text")
                or any(keyword.arg == "encoding" for keyword in node.keywords)
            ):
                yield node.lineno, name
            case ast.Call(func=ast.Name(id="open"), args=[_, ast.Constant(value=str(mode))]) | (
                ast.Call(func=ast.Attribute(attr="open"), args=[ast.Constant(value=str(mode))])
            ) if re.fullmatch("[rwax+t]+", mode):
                if not any(keyword.arg == "encoding" for keyword in node.keywords):
                    yield node.lineno, "open"
            case _:
                pass


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


SYSTEM_FOLDER = ROOT / "cgconvert" / "io" / "system"


def test_what_systems_do_differently_stands_in_one_folder() -> None:
    own = {
        path.relative_to(ROOT).as_posix(): [
            f"{path.relative_to(ROOT).as_posix()}:{line}: {name}"
            for line, name in system_own(ast.parse(path.read_text("utf-8")))
        ]
        for path in python_files("cgconvert")
    }
    outside = [
        line
        for name, lines in own.items()
        for line in lines
        if not name.startswith("cgconvert/io/system/")
    ]
    assert outside == []
    assert len(list(SYSTEM_FOLDER.glob("*.py"))) > 4
    assert all(own[f"cgconvert/io/system/{name}.py"] for name in ("files", "locks", "processes"))


def test_every_text_file_has_an_encoding() -> None:
    """Windows would take its own, and other bytes would be written."""
    without = [
        f"{path.relative_to(ROOT).as_posix()}:{line}: {name}"
        for path in python_files("cgconvert")
        for line, name in texts_without_encoding(ast.parse(path.read_text("utf-8")))
    ]
    assert without == []


READERS = {
    "installation.py": "the package's own pyproject.toml",
    "io/system/confinement.py": "the null device",
    "io/system/open_folder.py": "folders, of which nothing is read",
    "io/system/files.py": "the descriptors of what a run itself writes, and of folders to sync",
    "io/system/open_file_links.py": "a file that is open, to copy it",
    "io/system/locks.py": "locks, which it makes",
    "io/system/memory.py": "what the kernel says of memory",
    "io/system/own_files.py": "the cache's own files, without following links",
    "io/system/regular_files.py": "the one place, and the kernel's list of mounts",
    "io/system/streams.py": "the null device",
    "io/system/threads.py": "what the kernel says of cores",
    "cli/main.py": "the null device",
    "runtimes/onnxruntime.py": "the weights of a graph in the private folder",
    "texts/corpus.py": "Python's own standard library",
    "testing/synthetic.py": "the checkpoints that it writes itself",
    "verification/report/html.py": "the package's own template and style",
}
"""Modules of the package that open files to read them by themselves, and which."""


def opens_for_reading(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every call that opens a file to read it, or lets a library do it."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="os"), attr="open")):
                yield node.lineno, "os.open"
            case ast.Call(func=ast.Attribute(value=ast.Name(id=module), attr="open")) if module in (
                "io",
                "gzip",
                "bz2",
                "lzma",
                "tarfile",
                "codecs",
                "tokenize",
            ):
                yield node.lineno, f"{module}.open"
            case ast.Call(func=ast.Attribute(attr="read_text" | "read_bytes" as name)):
                yield node.lineno, name
            case ast.Call(func=ast.Attribute(attr="fromfile" | "memmap" | "mmap" as name)):
                yield node.lineno, name
            case ast.Call(func=ast.Name(id="open" | "FileIO" as name), args=[_, *modes]):
                if not modes or not is_mode_of_writing(modes[0]):
                    yield node.lineno, name
            case ast.Call(func=ast.Attribute(attr="open"), args=[]):
                yield node.lineno, "open"
            case ast.Call(func=ast.Attribute(attr="open"), args=[ast.Constant() as mode, *_]):
                if not is_mode_of_writing(mode):
                    yield node.lineno, "open"
            case _:
                pass


def is_mode_of_writing(mode: ast.expr) -> bool:
    """Whether this is a mode in which a file is only written."""
    return (
        isinstance(mode, ast.Constant) and re.fullmatch("[wxa][bt]?", str(mode.value)) is not None
    )


def test_files_are_opened_to_be_read_in_one_module() -> None:
    """Elsewhere a pipe would be waited for, a device read, and nothing would count the bytes."""
    opened = {
        path.relative_to(ROOT / "cgconvert").as_posix(): [
            f"{path.relative_to(ROOT).as_posix()}:{line}: {name}"
            for line, name in opens_for_reading(ast.parse(path.read_text("utf-8")))
        ]
        for path in python_files("cgconvert")
    }
    outside = [line for name, lines in opened.items() if name not in READERS for line in lines]
    outside = [line for line in outside if "/io/reading.py:" not in line]
    assert outside == []
    assert [name for name in READERS if not opened.get(name)] == []
    assert opened["io/reading.py"]


READING = """
open(path)
open(path, "rb")
open(path, mode)
path.open()
path.open("rb")
path.open("r+b")
path.read_text("utf-8")
path.read_bytes()
os.open(path, os.O_RDONLY)
io.open(path)
gzip.open(path)
tarfile.open(path)
FileIO(path)
np.fromfile(path)
np.memmap(path)
"""
NOT_READING = """
open(path, "wb")
path.open("w", encoding="utf-8")
path.write_text("")
runtime.open(path, device)
tarfile.TarFile
read_bytes(path)
"""


def test_the_rule_knows_the_ways_to_open_a_file() -> None:
    assert [line for line, _ in opens_for_reading(ast.parse(READING))] == list(range(2, 17))
    assert list(opens_for_reading(ast.parse(NOT_READING))) == []
