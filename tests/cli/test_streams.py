"""The standard streams of a command may be closed, full, or without a reader."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

STREAMS = {
    "a closed input": ("run - <&-", 3, "cgconvert: stdin: is closed; give the recipe as a file\n"),
    "a full disk for errors": ("inspect nowhere 2>/dev/full", 3, ""),
    "a full disk for a traceback": ("-v inspect nowhere 2>/dev/full", 3, ""),
    "closed errors": ("inspect nowhere 2>&-", 3, ""),
    "a full disk for the output": ("--version >/dev/full", 5, "cgconvert: I/O: No space left"),
    "a closed output": ("--version >&-", 0, ""),
}
"""Redirections of a shell, with the exit code and the start of what stands on stderr."""


@pytest.mark.parametrize("stream", STREAMS)
def test_the_exit_code_does_not_depend_on_the_streams(stream: str, tmp_path: Path) -> None:
    arguments, code, start = STREAMS[stream]
    ended = subprocess.run(
        ["sh", "-c", f'"$0" -m cgconvert {arguments}', sys.executable],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == code, ended
    assert ended.stderr.startswith(start), ended
    assert len(ended.stderr.splitlines()) == (1 if start else 0), ended


def test_errors_that_nobody_reads_keep_their_exit_code(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-m", "cgconvert", "inspect", "nowhere"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=writing,
    )  # fmt: skip
    os.close(writing)
    assert ended.returncode == 3
