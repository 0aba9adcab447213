"""The fault matrix: every damaged input through the real commands.

Each command must end with the expected exit code and one line on stderr that contains the file. It
must print no traceback, run no code from the file, write and leave nothing, keep an earlier
artefact, and stay within bounds of time and memory.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.faults.cases_adapter import ADAPTERS
from tests.faults.cases_artefacts import ARTEFACTS
from tests.faults.cases_invalid_values import INVALID_VALUES
from tests.faults.cases_pickle import PICKLES
from tests.faults.cases_safetensors import SAFETENSORS
from tests.faults.cases_sizes import SIZES
from tests.faults.cases_tar import TARS
from tests.faults.cases_training import TRAINING
from tests.faults.cases_zip import ZIPS
from tests.faults.matrix import COMMANDS, Case, commands_for
from tests.faults.server import Server
from tests.faults.valid_inputs import INPUT_NAMES, ValidInputs

CASES: dict[str, Case] = {
    **PICKLES, **ZIPS, **TARS, **SAFETENSORS, **TRAINING, **INVALID_VALUES, **ARTEFACTS, **ADAPTERS,
    **SIZES,
}  # fmt: skip
NUMBERS = {name: number for number, name in enumerate(CASES)}

COMMANDS_PER_CASE = int(os.environ.get("CGCONVERT_TEST_COMMANDS", "2"))
"""Number of a case's commands that are run; 99 is all of them."""

CPU_SECONDS, MEMORY_BYTES = 5.0, 600 << 20
"""Limits of a command; at most 1.6 s and 253 MiB were measured, on a busy machine.

Memory is counted beyond the imports, which take 250 MB.
"""


def write_input(kind: str, valid_inputs: ValidInputs, folder: Path) -> Path:
    """Write a valid input of this kind, and beside it the valid files that some commands need."""
    valid_inputs.copy("gguf", folder)
    (folder / "source.gguf").rename(folder / "valid.gguf")
    (folder / "source.gguf.cgconvert.json").rename(folder / "valid.gguf.cgconvert.json")
    valid_inputs.copy("safetensors", folder)
    (folder / "source").rename(folder / "valid")
    return valid_inputs.copy(kind, folder)


def write_earlier_artefacts(valid_inputs: ValidInputs, folder: Path) -> None:
    """Write artefacts, which --force may replace, under the names that the commands write to."""
    for suffix in ("", ".cgconvert.json"):
        shutil.copy(folder / f"valid.gguf{suffix}", folder / f"out.gguf{suffix}")
    (folder / "earlier").mkdir()
    valid_inputs.copy("hf", folder / "earlier").rename(folder / "out")
    (folder / "earlier").rmdir()


PROGRESS = re.compile(r"\d+ of \d+  ")


def snapshot(folder: Path) -> dict[str, object]:
    """Return mode, size and time of every file below a folder, and a hash of the artefacts."""
    entries: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name, status = str(path.relative_to(folder)), path.lstat()
        digest = ""
        if name.startswith("out") and path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        written = 0 if path.is_dir() else status.st_mtime_ns  # staging comes and goes in folders
        entries[name] = (status.st_mode, status.st_size, written, digest)
    return entries


@pytest.mark.parametrize("name", CASES)
def test_a_damaged_input_is_refused_in_one_line(
    name: str,
    server: Server,
    valid_inputs: ValidInputs,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    case, number = CASES[name], NUMBERS[name]
    # What verify measured on a valid reference may stay in the cache, which is no output.
    env = {"CGCONVERT_CACHE": str(tmp_path_factory.mktemp("cache"))}
    case.damage(write_input(case.kind, valid_inputs, tmp_path))
    overwrites = number % 2 == 1
    if overwrites:
        write_earlier_artefacts(valid_inputs, tmp_path)
    before = snapshot(tmp_path)
    for command in commands_for(case, number, COMMANDS_PER_CASE):
        arguments = [part.format(input=INPUT_NAMES[case.kind]) for part in COMMANDS[command]]
        if overwrites and ("-o" in arguments or command == "run"):
            arguments.append("--force")
        outcome = server.run(*arguments, cwd=tmp_path, env=env)
        command_and_output = f"{name}: {' '.join(arguments)}\n{outcome.out}{outcome.err}"
        assert outcome.code == case.expected(command), command_and_output
        assert "Traceback" not in outcome.out + outcome.err, command_and_output
        if outcome.code:
            # A busy machine takes long enough for lines of progress.
            lines = [line for line in outcome.err.splitlines() if not PROGRESS.match(line)]
            assert len(lines) == 1, command_and_output
            assert lines[0].startswith("cgconvert: "), command_and_output
            assert lines[0].isprintable(), command_and_output
        if outcome.code == case.code and case.code:
            assert case.file in lines[0], command_and_output
            assert re.search(case.message, lines[0]), command_and_output
        assert snapshot(tmp_path) == before, command_and_output
        assert outcome.seconds < CPU_SECONDS, command_and_output
        assert outcome.grown < MEMORY_BYTES, command_and_output


VALID = {
    **dict.fromkeys(("torch", "torch-sharded", "safetensors", "safetensors-sharded", "jaxformer"),
                    ("inspect", "to-gguf", "to-hf", "quantize-onnx", "reference")),
    **dict.fromkeys(("hf", "gptj", "phi", "gguf"),
                    ("inspect", "verify", "generate", "to-onnx-fp16")),
    "onnx": ("inspect", "verify", "generate", "genai", "quantize"),
    "onnx-int4": ("inspect", "verify", "generate", "genai"),
    "adapter": ("inspect", "to-gguf", "to-hf", "reference"),
    "recipe": ("run",),
}  # fmt: skip


@pytest.mark.parametrize("kind", VALID)
def test_valid_inputs_pass(
    kind: str, server: Server, valid_inputs: ValidInputs, tmp_path: Path
) -> None:
    """The inputs are valid before the damage, so it is the damage that makes the cases fail."""
    write_input(kind, valid_inputs, tmp_path)
    for command in VALID[kind]:
        arguments = [part.format(input=INPUT_NAMES[kind]) for part in COMMANDS[command]]
        arguments += ["--force"] if "-o" in arguments else []
        outcome = server.run(*arguments, cwd=tmp_path)
        # One layer of random weights is not a useful model: it may miss a threshold.
        assert outcome.code in ((0, 4) if command in ("verify", "reference") else (0,)), outcome.err
        assert outcome.err.count("\n") <= 1
