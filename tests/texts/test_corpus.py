"""The parts of the library: they never mix, on any Python."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from cgconvert.texts import corpus


def write(root: Path, name: str, data: str | bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def names(root: Path) -> dict[str, list[str]]:
    return {
        part: [path.relative_to(root).as_posix() for path in corpus.files(part, root)]
        for part in corpus.PARTS
    }


@pytest.mark.parametrize(
    ("module", "group"),
    [
        ("json", "json"),
        ("json.decoder", "json"),
        ("json.tests", "json"),
        ("test.test_json", "json"),
        ("test.test_json.test_decode", "json"),
        ("test.test_xml_etree_c", "xml"),
        ("test._test_multiprocessing", "multiprocessing"),
        ("test.test_multiprocessing_fork.test_misc", "multiprocessing"),
        ("test.pickletester", "pickle"),
        ("test.lock_tests", "lock"),
        ("test.test_unittest.support", "unittest"),
        ("test.test__locale", "locale"),
        ("test.test_doctest", "doctest"),
        ("test.support.os_helper", "support"),
        ("unittest.test.test_case", "unittest"),
        ("_strptime", "strptime"),
        ("test.test_strptime", "strptime"),
        ("_pydecimal", "decimal"),
        ("_pyio", "io"),
        ("__future__", "future"),
        ("test", "test"),
        ("_", "_"),
    ],
)
def test_a_test_is_in_the_group_of_its_module(module: str, group: str) -> None:
    assert corpus.group_of(module) == group
    assert corpus.part_of(module) == corpus.part_of(group)


@pytest.mark.parametrize(
    ("module", "part"),
    [
        ("asyncio.tasks", "training"),
        ("argparse", "training"),
        ("_pydecimal", "training"),
        ("shlex", "calibration"),
        ("datetime", "calibration"),
        ("test.datetimetester", "calibration"),
        ("json", "evaluation"),
        ("collections.abc", "evaluation"),
        ("test.test_dataclasses", "evaluation"),
    ],
)
def test_known_assignments_stay(module: str, part: str) -> None:
    # The embedded model was trained under this split: a change would leak its training text.
    assert corpus.part_of(module) == part


@pytest.mark.parametrize("name", ["", ".", "json.", "json..decoder"])
def test_names_of_no_module_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a module name"):
        corpus.part_of(name)


def test_the_running_library_is_split_without_overlap() -> None:
    parts = {part: corpus.files(part) for part in corpus.PARTS}
    groups = {}
    for part, paths in parts.items():
        assert paths
        assert paths == sorted(set(paths), key=Path.as_posix)
        root = Path(sysconfig.get_path("stdlib"))
        relative = [path.relative_to(root) for path in paths]
        assert not [path for path in relative if "site-packages" in path.parts]
        groups[part] = {corpus.group_of(".".join(p.with_suffix("").parts)) for p in relative}
    assert not groups["training"] & groups["evaluation"]
    assert not groups["training"] & groups["calibration"]
    assert not groups["calibration"] & groups["evaluation"]
    total = sum(len(group) for group in groups.values())
    # Binomial, 10% of some hundred groups: three standard deviations are well inside.
    assert 0.05 < len(groups["evaluation"]) / total < 0.17
    assert 0.05 < len(groups["calibration"]) / total < 0.17


def test_parts_do_not_depend_on_the_test_package(tmp_path: Path) -> None:
    modules = ["json/__init__.py", "json/decoder.py", "shlex.py", "argparse.py"]
    for name in modules:
        write(tmp_path, name, f"# {name}\n")
    before = names(tmp_path)
    write(tmp_path, "test/test_json/test_tool.py", "import json\n")
    write(tmp_path, "test/test_shlex.py", "import shlex\n")
    after = names(tmp_path)
    assert before == {
        "training": ["argparse.py"],
        "calibration": ["shlex.py"],
        "evaluation": ["json/__init__.py", "json/decoder.py"],
    }
    assert after == {
        "training": ["argparse.py"],
        "calibration": ["shlex.py", "test/test_shlex.py"],
        "evaluation": [*before["evaluation"], "test/test_json/test_tool.py"],
    }


def test_files_that_are_not_library_code_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, "kept.py", "x = 1\n")
    for name in (
        "site-packages/torch/__init__.py",
        "lib-dynload/_json.py",
        "encodings/cp437.py",
        "pydoc_data/topics.py",
        "lib2to3/tests/data/crlf.py",
        "_sysconfigdata__linux_x86_64-linux-gnu.py",
        "_sysconfigdata.py",
        "notes.txt",
    ):
        write(tmp_path, name, "x = 1\n")
    write(tmp_path, "empty.py", "\n")
    write(tmp_path, "latin.py", "# -*- coding: latin-1 -*-\nx = 'é'\n".encode("latin-1"))
    write(tmp_path, "undeclared.py", b"x = '\xe9'\n")
    write(tmp_path, "unknown.py", b"# coding: no-such-codec\n")
    assert [name for paths in names(tmp_path).values() for name in paths] == ["kept.py"]


def test_text_has_plain_line_ends_and_no_mark(tmp_path: Path) -> None:
    write(tmp_path, "argparse.py", b"\xef\xbb\xbfx = 'caf\xc3\xa9'\r\ny = 2\r\n")
    assert corpus.text("training", root=tmp_path) == ["x = 'café'\ny = 2\n"]


def test_text_stops_at_the_limit_after_a_full_line(tmp_path: Path) -> None:
    for name in ("argparse", "asyncio", "email", "socket"):
        write(tmp_path, f"{name}.py", f"# {name} é\n" * 10)
    everything = corpus.text("training", root=tmp_path)
    assert len(everything) == 4
    size = sum(len(document.encode()) for document in everything)
    for limit in (0, 1, 50, 200, size - 1, size, size + 1):
        chosen = corpus.text("training", limit, tmp_path)
        assert sum(len(document.encode()) for document in chosen) <= limit
        assert "".join(everything).startswith("".join(chosen))
        assert all(document.endswith("\n") for document in chosen)
    assert corpus.text("training", size, tmp_path) == everything


def test_digest_follows_content_names_and_nothing_else(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for root in (first, second):
        write(root, "argparse.py", "x = 1\n")
        write(root, "json/__init__.py", "y = 1\n")
    start = {part: corpus.digest(part, first) for part in corpus.PARTS}
    assert start == {part: corpus.digest(part, second) for part in corpus.PARTS}
    assert all(len(value) == 64 for value in start.values())

    write(first, "argparse.py", "x = 2\n")
    assert corpus.digest("training", first) != start["training"]
    assert corpus.digest("evaluation", first) == start["evaluation"]

    (second / "argparse.py").rename(second / "asyncio.py")
    assert corpus.part_of("asyncio") == "training"
    assert corpus.digest("training", second) != start["training"]


@pytest.mark.parametrize("function", [corpus.files, corpus.text, corpus.digest])
def test_an_unknown_part_is_refused(function: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="no such part: 'test'"):
        function("test")
