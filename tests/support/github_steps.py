"""Runs the shell steps of a workflow or a composite action as a runner of GitHub Actions does.

Steps with `uses` are left out. An expression may only name a value of a context, such as
`${{ inputs.source }}`; scripts may have none, because what an input says would become a part of
the script.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "Runner"]

ROOT = Path(__file__).resolve().parents[2]

EXPRESSION = re.compile(r"\$\{\{\s*([\w.-]+)\s*\}\}")

PYTHON = f"""\
#!/usr/bin/env bash
# Python without installing anything: pip's arguments are written to a file.
if [ "$1 $2" = "-m pip" ]; then
  shift 2
  echo "$*" >> "$PIP_LOG"
  if [ "$1" = cache ]; then echo "$HOME/.cache/pip"; fi
elif [ "$1 $2" = "-m venv" ]; then
  mkdir -p "$3/bin"
  cp "$0" "$(dirname "$0")/cgconvert" "$3/bin/"
else
  exec "{sys.executable}" "$@"
fi
"""

CGCONVERT = f"""\
#!/usr/bin/env bash
PYTHONPATH="{ROOT}" exec "{sys.executable}" -m cgconvert "$@"
"""


@dataclass
class Runner:
    """A runner with a folder of its own.

    Attributes:
        folder: Its folder: the workspace lies in `work`, RUNNER_TEMP is `temp`.
        inputs: The values of the action's inputs.
        env: The environment of the job, and what steps have added to it.
        outputs: Outputs of the steps by id, then by name.
    """

    folder: Path
    inputs: Mapping[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("work", "temp", "bin"):
            (self.folder / name).mkdir()
        for name, text in (("python", PYTHON), ("cgconvert", CGCONVERT)):
            (self.folder / "bin" / name).write_text(text)
            (self.folder / "bin" / name).chmod(0o755)

    @property
    def workspace(self) -> Path:
        return self.folder / "work"

    @property
    def summary(self) -> str:
        """What the steps have written for the run's page."""
        path = self.folder / "summary.md"
        return path.read_text("utf-8") if path.exists() else ""

    @property
    def pip_calls(self) -> list[str]:
        """The arguments of each call of pip."""
        path = self.folder / "pip.log"
        return path.read_text("utf-8").splitlines() if path.exists() else []

    def run(self, steps: Sequence[Mapping[str, Any]]) -> subprocess.CompletedProcess[str] | None:
        """Run steps until one fails; return what that one did, or None if none did."""
        for step in steps:
            if "run" not in step:
                continue
            outcome = self._run_step(step)
            if outcome.returncode:
                return outcome
        return None

    def _run_step(self, step: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
        assert "${{" not in step["run"], step
        output, environment = self.folder / "output", self.folder / "environment"
        output.write_text("")
        environment.write_text("")
        own = {name: self.evaluate(value) for name, value in step.get("env", {}).items()}
        outcome = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=self.workspace,
            env={
                **os.environ, **self.env, **own,
                "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
                "RUNNER_TEMP": str(self.folder / "temp"),
                "RUNNER_OS": "Linux",
                "GITHUB_OUTPUT": str(output),
                "GITHUB_ENV": str(environment),
                "GITHUB_STEP_SUMMARY": str(self.folder / "summary.md"),
                "PIP_LOG": str(self.folder / "pip.log"),
            },
            capture_output=True,
            text=True,
        )  # fmt: skip
        if "id" in step:
            self.outputs[step["id"]] = dict(_assignments(output))
        self.env.update(_assignments(environment))
        return outcome

    def evaluate(self, value: str) -> str:
        """The text with its expressions replaced by the values that they name."""
        contexts: dict[str, str] = {
            **{f"inputs.{name}": text for name, text in self.inputs.items()},
            **{f"env.{name}": text for name, text in self.env.items()},
            **{
                f"steps.{step}.outputs.{name}": text
                for step, outputs in self.outputs.items()
                for name, text in outputs.items()
            },
            "github.action_path": str(ROOT),
        }
        return EXPRESSION.sub(lambda match: contexts[match[1]], value)


def _assignments(path: Path) -> list[tuple[str, str]]:
    """Read NAME=VALUE lines, as GITHUB_OUTPUT and GITHUB_ENV have them."""
    pairs = (line.partition("=") for line in path.read_text("utf-8").splitlines())
    return [(name, value) for name, _, value in pairs]
