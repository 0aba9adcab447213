"""Random input for parsers and commands, and what once broke one. tests.faults.fuzz runs longer."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.command_folder import CommandFolder
from tests.faults.command_targets import COMMAND_TARGETS
from tests.faults.fuzz import CORPUS
from tests.faults.parser_targets import PARSERS, ParserFolder
from tests.faults.server import Server

EXAMPLES = int(os.environ.get("CGCONVERT_TEST_EXAMPLES", "100"))
"""Inputs for each parser."""

COMMAND_EXAMPLES = {"command-line": 3 * EXAMPLES // 10, "run": EXAMPLES // 5}
"""Inputs for each target of commands, and EXAMPLES / 100 for those that stand for one file."""

KEPT = sorted(path.relative_to(CORPUS) for path in CORPUS.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def parsers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ParserFolder]:
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CGCONVERT_CACHE", str(folder / "cache"))
        yield ParserFolder(folder)


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory, server: Server) -> CommandFolder:
    return CommandFolder(tmp_path_factory.mktemp("commands") / "run", server)


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_reads_random_input_or_refuses_it_in_one_line(
    name: str, parsers: ParserFolder
) -> None:
    """It returns, or raises an InputError of one line, within the time limit."""
    parsers.place(name)

    @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        def choose(low: int, high: int) -> int:
            return data.draw(st.integers(low, max(low, high)))

        parsers.check(name, parsers.make(name, choose))

    holds()


@pytest.mark.parametrize("name", COMMAND_TARGETS)
def test_a_command_with_random_input_ends_as_promised(name: str, commands: CommandFolder) -> None:
    """Its inputs are always the same; hypothesis would begin with the simplest, and run many."""
    target = COMMAND_TARGETS[name]
    valid = target.valid(commands)
    for number in range(COMMAND_EXAMPLES.get(name, max(1, EXAMPLES // 100))):
        target.check(commands, target.make(valid, random.Random(f"{name} {number}").randint))


@pytest.mark.parametrize("path", KEPT, ids=str)
def test_input_that_once_broke_a_parser_or_a_command_is_handled(
    path: Path, parsers: ParserFolder, commands: CommandFolder
) -> None:
    name, raw = str(path.parent), (CORPUS / path).read_bytes()
    if name in PARSERS:
        parsers.check(name, raw)
    else:
        COMMAND_TARGETS[name].check(commands, raw, every=True)
