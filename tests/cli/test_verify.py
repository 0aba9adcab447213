"""`cgconvert verify` in a terminal: the last thing that a person sees is the sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import cgconvert
from tests.support.terminal import run_in_terminal


@pytest.mark.parametrize("columns", [80, 40])
def test_the_sentence_is_last(columns: int, tmp_path: Path) -> None:
    path = cgconvert.to_gguf("codegen-tiny-mono", tmp_path / "m.gguf", type="Q8_0").path
    data = bytearray(path.read_bytes())
    data[-1000] ^= 0xFF
    path.write_bytes(data)
    command = [sys.executable, "-m", "cgconvert", "verify", "m.gguf", "--quick"]
    session = run_in_terminal(command, columns=columns, folder=tmp_path, seconds=300)
    lines = [line for line in session.screen.lines if line]
    assert session.code == 4
    start = next(i for i, line in enumerate(lines) if line.startswith("Do not ship m.gguf: "))
    assert lines[-1].endswith("convert again.")
    assert len(lines) - start <= 5
    assert max(map(len, lines)) <= columns
