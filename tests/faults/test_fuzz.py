"""Mutated input for every parser, and what once broke one. The long run is tests.faults.fuzz."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.fuzz import CORPUS, TARGETS, Ground, mutated

EXAMPLES = int(os.environ.get("CGCONVERT_TEST_EXAMPLES", "100"))
"""For each target."""

KEPT = sorted(path.relative_to(CORPUS) for path in CORPUS.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CGCONVERT_CACHE", str(folder / "cache"))
        yield Ground(folder)


@pytest.mark.parametrize("target", TARGETS)
def test_mutations(target: str, ground: Ground) -> None:
    """The property: a right answer or an InputError of one line, within seconds."""
    ground.place(target)

    @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        def choose(low: int, high: int) -> int:
            return data.draw(st.integers(low, max(low, high)))

        ground.check(target, mutated(ground.seeds[target], choose))

    holds()


@pytest.mark.parametrize("path", KEPT, ids=str)
def test_what_once_broke_a_parser(path: Path, ground: Ground) -> None:
    ground.check(path.parts[0], (CORPUS / path).read_bytes())
