"""Commands open no socket, and leave nothing in the home and in the folder of temporary files.

All of them run one after the other in one process that strace follows, with everything that it
starts, in a network namespace of its own where the system lets us make one: there is no network in
it, and whoever waits for one would wait in vain.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cgconvert import embedded
from cgconvert.cli.commands import command_names
from cgconvert.model.decoder import Geometry
from cgconvert.testing import synthetic
from tests.support.command_runs import ROOT

GEOMETRY = Geometry(
    n_layer=1, n_embd=64, n_head=4, rotary_dim=16, n_positions=64, vocab_size=4096, mp_num=4
)
TEXT = "def add(first, second):\n    return first + second\n\n\n" * 50
RECIPE = "source: source\nsteps:\n  - to-gguf: {type: F16, output: recipe.gguf}\n  - verify\n"

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("--help",),
    ("inspect", "source"),
    ("to-hf", "source", "-o", "hf"),
    ("to-onnx", "source", "-o", "onnx"),
    ("to-gguf", "source", "--type", "Q8_0", "-o", "model.gguf"),
    ("quantize", "source", "--type", "Q4_0", "--calibration", "text.py", "-o", "calibrated.gguf"),
    ("run", "recipe.yaml"),
    ("generate", "source", "import"),
    ("generate", "hf", "import", "--runtime", "transformers"),
    ("generate", "onnx", "import", "--runtime", "onnxruntime"),
    ("generate", "onnx", "import", "--runtime", "onnxruntime-genai"),
    ("generate", "model.gguf", "import"),
    ("verify", "hf", "--reference", "source"),
    ("verify", "onnx", "--reference", "source", "--quick"),
    ("verify", "onnx", "--reference", "source", "--quick", "--runtime", "onnxruntime-genai"),
    *((("cache", "list"),) if "cache" in command_names() else ()),
    ("clean", "."),
    ("inspect", "not-there"),
    ("to-gguf", "no-such-owner/no-such-model", "--dry-run"),
)
"""Every command, and each runtime; the last ones name what is not there, the very last on the Hub,
which is a download that was asked for."""

SCRIPT = """
import json, sys
from cgconvert.cli.main import main

codes = []
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as leaving:
        codes.append(leaving.code or 0)
print(json.dumps(codes), flush=True)
"""

SOCKET = re.compile(r"\b(socket|connect|bind|listen|accept4?)\((?!.*= -1 EACCES)(.*)")
"""A call that makes or names a socket. Pairs of sockets, which have no address, are made by
socketpair; what the kernel refused was made for nothing."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a source, a recipe, a text, and with an empty home and temporary folder."""
    state = synthetic.RandomState(GEOMETRY, seed=1)
    folder = synthetic.write(
        "safetensors", state, GEOMETRY, tmp_path / "made", "small", embedded.path()
    )
    folder.rename(tmp_path / "source")
    (tmp_path / "text.py").write_text(TEXT)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    return tmp_path


def traced(folder: Path, commands: tuple[tuple[str, ...], ...]) -> tuple[list[int], list[str]]:
    """Run commands in `folder` under strace; return their exit codes and the calls of the network.

    Fails, with what to install, where strace is missing.
    """
    strace = shutil.which("strace")
    assert strace, "strace is missing: apt-get install strace"
    alone = ["unshare", "-n"]
    can_unshare = subprocess.run([*alone, "true"], capture_output=True, check=False)
    prefix = alone if can_unshare.returncode == 0 else []
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "XDG_", "CGCONVERT_", "ORT_", "TRANSFORMERS_"))
    } | {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    finished = subprocess.run(
        [*prefix, strace, "-f", "-qq", "-e", "trace=network", "-o", folder / "calls",
         sys.executable, "-c", SCRIPT, json.dumps(commands)],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-2000:]
    codes: list[int] = json.loads(finished.stdout.splitlines()[-1])
    return codes, (folder / "calls").read_text("utf-8", errors="replace").splitlines()


def test_no_command_opens_a_socket_or_touches_the_home(home: Path) -> None:
    assert {command[0] for command in COMMANDS} >= set(command_names())
    codes, calls = traced(home, COMMANDS[:-1])
    assert codes == [0] * (len(COMMANDS) - 2) + [3], codes
    assert any("socketpair(AF_UNIX" in call for call in calls)
    assert [call for call in calls if SOCKET.search(call)] == []
    left = {path.relative_to(home / "home").parts[:2] for path in (home / "home").rglob("*")}
    assert left <= {(".cache",), (".cache", "cgconvert")}
    assert list((home / "tmp").iterdir()) == []


def test_a_name_on_the_hub_is_asked_for_over_the_network(home: Path) -> None:
    """So the test above would see a socket."""
    codes, calls = traced(home, COMMANDS[-1:])
    assert codes in ([3], [5])
    assert [call for call in calls if SOCKET.search(call)]
