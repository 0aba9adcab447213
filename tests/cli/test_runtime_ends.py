"""A runtime that crashes or hangs, as commands tell it: one line, an exit code, nothing left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cgconvert
from cgconvert import embedded
from cgconvert.model.decoder import Geometry
from cgconvert.testing import synthetic
from tests.support.command_runs import ROOT

GEOMETRY = Geometry(
    n_layer=1, n_embd=64, n_head=4, rotary_dim=16, n_positions=64, vocab_size=4096, mp_num=4
)

SCRIPT = """
import json, sys
from cgconvert.cli.main import main
from cgconvert.io.system import separate_process
from cgconvert.runtimes import RUNTIMES

RUNTIMES["gguf"]["llama.cpp"] = "tests.support.hostile_runtimes:" + sys.argv[1]
try:
    main(json.loads(sys.argv[2]))
finally:
    process = separate_process._SERVER.process
    print("server", process and process.pid, flush=True)
"""


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artefact")
    state = synthetic.RandomState(GEOMETRY, seed=1)
    source = synthetic.write(
        "safetensors", state, GEOMETRY, folder / "source", "small", embedded.path()
    )
    return cgconvert.to_gguf(str(source), folder / "model.gguf", type="F16").path


def start(runtime: str, folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, runtime, json.dumps(arguments)],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("runtime", "reason"),
    [
        ("CrashingLlama", "llama.cpp crashed (SIGSEGV) when it ran it"),
        ("HangingLlama", "llama.cpp gave no answer in time when it ran it"),
    ],
)
def test_generate_says_in_a_line_how_the_runtime_ended(
    runtime: str, reason: str, artefact: Path
) -> None:
    name = artefact.name
    process = start(
        runtime, artefact.parent, "generate", name, "import", CGCONVERT_RUNTIME_SECONDS="10"
    )
    _, error = process.communicate(timeout=120)
    assert process.returncode == 3
    (line,) = error.splitlines()
    assert line.startswith(f"cgconvert: {name}: {reason}")


def test_verify_fails_by_the_check_of_the_runtime(artefact: Path) -> None:
    process = start(
        "CrashingLlama", artefact.parent, "verify", artefact.name, "--reference", "source/small"
    )
    output, error = process.communicate(timeout=300)
    assert process.returncode == 4
    assert "Traceback" not in error
    (line,) = (line for line in output.splitlines() if line.startswith("FAIL"))
    assert line.split()[1] == "runtime"
    assert "llama.cpp crashed (SIGSEGV) when it ran it" in line


def test_ctrl_c_ends_a_runtime_that_hangs(artefact: Path) -> None:
    process = start("HangingLlama", artefact.parent, "generate", artefact.name, "import")
    time.sleep(4)  # until it hangs; if it has not begun to, Ctrl-C has to work all the same
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.splitlines()[-1] == "cgconvert: interrupted"
    server = output.split()[-1]
    assert server == "None" or not Path(f"/proc/{server}").exists()
