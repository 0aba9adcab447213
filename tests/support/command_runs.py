"""Run commands of cgconvert one after the other in one new process.

    python -m tests.support.command_runs FOLDER < commands.json

The standard input is a JSON list of commands, each a list of arguments. The first that fails ends
the process with its exit code. Artefacts of any size are written by worker processes, and the
journal of a conversion has many entries.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from cgconvert.cli.main import main
from cgconvert.write import execute, plan, writer

__all__ = ["PORTABLE", "run_commands", "start_commands"]

ROOT = Path(__file__).resolve().parents[2]
PORTABLE = ROOT / "tests" / "support" / "portable"
"""The folder of the sitecustomize that takes Linux's own functions away."""


def start_commands(
    folder: Path, commands: Sequence[Sequence[str]], *, portable: bool
) -> subprocess.Popen[str]:
    """Start a process that runs commands in `folder`; `portable` takes Linux's functions away."""
    paths = [*([str(PORTABLE)] if portable else []), str(ROOT)]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "CGCONVERT_CACHE": f"{folder}-cache"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.command_runs"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=folder, env=os.environ | environment, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(json.dumps([list(command) for command in commands]))
    process.stdin.close()
    process.stdin = None
    return process


def run_commands(folder: Path, commands: Sequence[Sequence[str]], *, portable: bool) -> None:
    """Run commands in `folder`; raise AssertionError with what was printed if one fails."""
    with start_commands(folder, commands, portable=portable) as process:
        text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text
    assert "Traceback" not in text, text


def _run_all(commands: Sequence[Sequence[str]]) -> None:
    torch.set_num_threads(2)
    execute.SMALL_BYTES = 0
    plan.CHUNK_BYTES = 1 << 16
    writer.JOURNAL_BYTES = 1 << 16
    for command in commands:
        try:
            main(command)
        except SystemExit as leaving:
            if leaving.code:
                print("failed:", *command, flush=True)
                raise


if __name__ == "__main__":
    _run_all(json.load(sys.stdin))
