"""tests/run.py: what a failure stops, and how the run is summed up."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.run import Steps, install_strace


def python(code: str) -> tuple[str, ...]:
    return sys.executable, "-c", code


def test_a_failure_stops_only_the_steps_that_need_it(capfd: pytest.CaptureFixture[str]) -> None:
    steps = Steps()
    steps.run("install", python("print('one')"), python("exit(3)"), python("print('three')"))
    steps.run("tests", python("print('tests')"), needs=["install"])
    steps.run("report", python("print('report')"), needs=["tests"])
    steps.run("lint", python("print('lint')"))
    steps.run("node", ("no-such-program",))
    printed = capfd.readouterr().out.splitlines()
    assert [line for line in printed if " " not in line] == ["one", "lint"]
    assert steps.failures == 4
    *lines, last = steps.table().splitlines()
    assert last == "1 passed, 4 failed"
    assert [line.split()[0] for line in lines] == ["install", "tests", "report", "lint", "node"]
    endings = ["failed: exit code 3", "failed: it needs install", "failed: it needs tests",
               "passed", "'no-such-program'"]  # fmt: skip
    assert all(line.endswith(ending) for line, ending in zip(lines, endings, strict=True))


def test_commands_of_a_step_get_its_environment() -> None:
    steps = Steps()
    reads = python("import os; exit(os.environ['GREETING'] != 'hello')")
    steps.run("reads", reads, environment={"GREETING": "hello"})
    assert steps.table().endswith("1 passed, 0 failed")


def test_a_missing_strace_fails_and_a_line_says_what_to_install(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps = Steps()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    install_strace(steps)
    assert steps.failures == 1
    assert capfd.readouterr().out.splitlines()[-1].endswith("apt-get install strace, as root")


def test_nothing_is_installed_where_strace_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "strace").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    steps = Steps()
    install_strace(steps)
    assert not steps.outcomes
