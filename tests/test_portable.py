"""Without what only Linux has, conversions write the same bytes, go on after a kill, and end.

Every run here is a process of its own, from which `tests/support/portable` has taken away fcntl,
fork, positioned reads, SIGHUP and more before cgconvert was imported. Files that are open cannot be
renamed or removed there, as on Windows.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cgconvert import embedded
from cgconvert.model.decoder import Geometry
from cgconvert.testing import synthetic
from tests.faults.kill import file_hashes
from tests.support.command_runs import PORTABLE, ROOT, run_commands, start_commands

GEOMETRY = Geometry(
    n_layer=2, n_embd=256, n_head=4, rotary_dim=32, n_positions=64, vocab_size=4096, mp_num=4
)
TINY = replace(GEOMETRY, n_layer=1, n_embd=64, rotary_dim=16)
"""Small enough to be calibrated in a few seconds."""

TEXT = "def add(first, second):\n    return first + second\n\n\n" * 200
RECIPE = """
source: codegen-tiny-mono
steps:
  - to-gguf: {type: Q8_0}
  - to-onnx: {dtype: float16}
"""

COMMANDS = (
    ("to-hf", "shards", "--max-shard-size", "2MB", "-o", "hf"),
    ("to-hf", "shards", "--layout", "phi", "--dtype", "bfloat16", "-o", "phi"),
    ("to-hf", "steps", "-o", "from-jaxformer"),
    ("to-onnx", "shards", "-o", "onnx"),
    ("to-gguf", "shards", "--type", "Q5_K_M", "-o", "m.gguf"),
    ("to-gguf", "shards", "--type", "Q4_0", "-o", "m.gguf", "--force"),
    ("to-hf", "shards", "-o", "hf", "--force"),
    ("quantize", "shards", "--bits", "4", "--format", "onnx", "--effort", "fast", "-o", "onnx-4"),
    ("quantize", "small", "--type", "Q4_0", "--calibration", "text.py", "-o", "calibrated.gguf"),
    ("run", "recipe.yaml"),
    ("inspect", "m.gguf"),
)  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sharded checkpoint, a Jaxformer step, a text and a recipe."""
    folder = tmp_path_factory.mktemp("inputs")
    state, tokenizer = synthetic.RandomState(GEOMETRY, seed=3), embedded.path()
    for layout, name in (("torch-sharded", "shards"), ("jaxformer", "steps")):
        synthetic.write(layout, state, GEOMETRY, folder / layout, name, tokenizer)
    small = synthetic.RandomState(TINY, seed=1)
    synthetic.write("safetensors", small, TINY, folder / "safetensors", "small", tokenizer)
    return folder


def lay_inputs(inputs: Path, folder: Path) -> Path:
    """Make `folder`, with the inputs under their names."""
    folder.mkdir()
    for path in inputs.glob("*/*"):
        (folder / path.name).symlink_to(path)
    (folder / "text.py").write_text(TEXT)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def test_every_conversion_writes_the_same_bytes(inputs: Path, tmp_path: Path) -> None:
    hashes = []
    for portable in (False, True):
        folder = lay_inputs(inputs, tmp_path / str(portable))
        run_commands(folder, COMMANDS, portable=portable)
        assert not [path for path in folder.rglob("*") if "cgconvert-tmp" in path.name]
        hashes.append(file_hashes(folder))
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) > 30


KILLED = ("to-hf", "shards", "--dtype", "float32", "-o", "killed", "--resume")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_conversion_that_was_stopped_goes_on_and_leaves_no_process(
    number: signal.Signals, inputs: Path, tmp_path: Path
) -> None:
    folder, whole = lay_inputs(inputs, tmp_path / "portable"), lay_inputs(inputs, tmp_path / "x")
    run_commands(whole, [KILLED], portable=False)
    journal = folder / ".killed.cgconvert-tmp" / "journal"
    process = start_commands(folder, [KILLED], portable=True)
    while process.poll() is None and not has_position(journal):
        time.sleep(0.001)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.kill()
    text, _ = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL), text
    assert "Traceback" not in text
    wait_until_group_ends(process.pid)
    assert has_position(journal)
    assert not (folder / "killed").exists()
    run_commands(folder, [KILLED], portable=True)
    assert file_hashes(folder) == file_hashes(whole)
    assert not journal.parent.exists()


def has_position(journal: Path) -> bool:
    try:
        return '"position"' in journal.read_text(encoding="utf-8")
    except FileNotFoundError:
        return False


def wait_until_group_ends(group: int) -> None:
    """Wait until no process of the group is left; a worker that stays fails the test."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail("a worker process outlives its parent")


def test_two_runs_do_not_write_one_output(inputs: Path, tmp_path: Path) -> None:
    folder = lay_inputs(inputs, tmp_path / "portable")
    holder = (
        "import sys; from pathlib import Path; from cgconvert.io.system.locks import FileLock;"
        "lock = FileLock(Path('.out.cgconvert-tmp/lock')); lock.acquire();"
        "print('held', flush=True);"
        "sys.stdin.read()"
    )
    (folder / ".out.cgconvert-tmp").mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PORTABLE), str(ROOT)])}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", holder], cwd=folder, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with start_commands(folder, [("to-hf", "shards", "-o", "out")], portable=True) as process:
            text, _ = process.communicate(timeout=60)
        other.kill()  # nothing but the system frees its lock
    assert process.returncode == 2
    assert "out is being written by another run" in text
    run_commands(folder, [("to-hf", "shards", "-o", "out")], portable=True)


SCRIPT = """
print("began", flush=True)
import cgconvert
from cgconvert.write import execute
import torch
torch.set_num_threads(2)
execute.SMALL_BYTES = 0
cgconvert.to_hf("codegen-tiny-mono", output="out")
"""


def test_a_script_without_a_main_guard_runs_once(tmp_path: Path) -> None:
    """Spawned workers import the program that runs, unless it is hidden from them."""
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PORTABLE), str(ROOT)])}
    run = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, text=True,
        capture_output=True, timeout=120,
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (0, "began\n"), run.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()
