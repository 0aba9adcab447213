"""Mutated input for every parser, and inputs that once broke one. tests.faults.fuzz runs longer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.fuzz import CORPUS, TARGETS, FuzzFolder, mutated

EXAMPLES = int(os.environ.get("CGCONVERT_TEST_EXAMPLES", "100"))
"""Mutated inputs for each parser."""

KEPT = sorted(path.relative_to(CORPUS) for path in CORPUS.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def fuzz_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FuzzFolder]:
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CGCONVERT_CACHE", str(folder / "cache"))
        yield FuzzFolder(folder)


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_input_is_read_or_refused_in_one_line(target: str, fuzz_folder: FuzzFolder) -> None:
    """The parser returns, or raises an InputError of one line, within the time limit."""
    fuzz_folder.place(target)

    @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        def choose(low: int, high: int) -> int:
            return data.draw(st.integers(low, max(low, high)))

        fuzz_folder.check(target, mutated(fuzz_folder.seeds[target], choose))

    holds()


@pytest.mark.parametrize("path", KEPT, ids=str)
def test_input_that_once_broke_a_parser_is_handled(path: Path, fuzz_folder: FuzzFolder) -> None:
    fuzz_folder.check(path.parts[0], (CORPUS / path).read_bytes())
