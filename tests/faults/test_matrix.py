"""The fault matrix: every broken input through the real commands.

Each time: the exit code of the table, one line on stderr with the file in it, no traceback, nothing
run, nothing written or left, an earlier artefact as it was, in bounded time and memory.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import pytest

from tests.faults.cases_archives import ARCHIVES
from tests.faults.cases_formats import FORMATS
from tests.faults.cases_meaning import MEANING
from tests.faults.cases_pickle import PICKLES
from tests.faults.cases_safetensors import SAFETENSORS
from tests.faults.matrix import COMMANDS, Case, rotated
from tests.faults.server import Server
from tests.faults.sound import GIVEN, Sound

CASES: dict[str, Case] = {**PICKLES, **ARCHIVES, **SAFETENSORS, **MEANING, **FORMATS}
NUMBERS = {name: number for number, name in enumerate(CASES)}

MOST_COMMANDS = int(os.environ.get("CGCONVERT_TEST_COMMANDS", "2"))
"""How many of a case's commands are run; 99 is all of them."""

CPU_SECONDS, MEMORY_BYTES = 5.0, 600 << 20
"""Memory is counted beyond the imports, which take 250 MB."""


def placed(case_kind: str, sound: Sound, folder: Path) -> Path:
    """An input of this kind, and beside it the sound things that some commands want."""
    sound.copy("gguf", folder)
    (folder / "source.gguf").rename(folder / "sound.gguf")
    (folder / "source.gguf.cgconvert.json").rename(folder / "sound.gguf.cgconvert.json")
    sound.copy("safetensors", folder)
    (folder / "source").rename(folder / "sound")
    return sound.copy(case_kind, folder)


def earlier(folder: Path) -> None:
    """Artefacts under the names that the commands write to."""
    (folder / "out").mkdir()
    (folder / "out" / "earlier").write_text("precious")
    (folder / "out.gguf").write_text("precious")
    (folder / "out.gguf.cgconvert.json").write_text("precious too")


def snapshot(folder: Path) -> dict[str, object]:
    """What is there and when it was last written; of earlier artefacts the bytes."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name, status = str(path.relative_to(folder)), path.lstat()
        digest = ""
        if name.startswith("out") and path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        written = 0 if path.is_dir() else status.st_mtime_ns  # staging comes and goes in folders
        found[name] = (status.st_mode, status.st_size, written, digest)
    return found


@pytest.mark.parametrize("name", CASES)
def test_fault(name: str, server: Server, sound: Sound, tmp_path: Path) -> None:
    case, number = CASES[name], NUMBERS[name]
    case.damage(placed(case.kind, sound, tmp_path))
    again = number % 2 == 1
    if again:
        earlier(tmp_path)
    before = snapshot(tmp_path)
    for command in rotated(case, number, MOST_COMMANDS):
        arguments = [part.format(given=GIVEN[case.kind]) for part in COMMANDS[command]]
        if again and ("-o" in arguments or command == "run"):
            arguments.append("--force")
        told = server.run(*arguments, cwd=tmp_path, env={"CGCONVERT_CACHE": str(tmp_path / "c")})
        what = f"{name}: {' '.join(arguments)}\n{told.out}{told.err}"
        assert told.code == case.expected(command), what
        assert "Traceback" not in told.out + told.err, what
        if told.code:
            lines = told.err.strip("\n").split("\n")
            assert len(lines) == 1, what
            assert lines[0].startswith("cgconvert: "), what
            assert lines[0].isprintable(), what
        if told.code == case.code and case.code:
            assert case.file in lines[0], what
            assert re.search(case.says, lines[0]), what
        assert snapshot(tmp_path) == before, what
        assert told.seconds < CPU_SECONDS, what
        assert told.grown < MEMORY_BYTES, what


SOUND = {
    **dict.fromkeys(("torch", "torch-sharded", "safetensors", "safetensors-sharded", "jaxformer"),
                    ("inspect", "to-gguf", "to-hf", "quantize-onnx", "reference")),
    **dict.fromkeys(("hf", "phi", "gguf"), ("inspect", "verify", "generate", "to-onnx-fp16")),
    "onnx": ("inspect", "verify", "generate", "genai", "quantize"),
    "onnx-int4": ("inspect", "verify", "generate", "genai"),
    "recipe": ("run",),
}  # fmt: skip


@pytest.mark.parametrize("kind", SOUND)
def test_sound_inputs_pass(kind: str, server: Server, sound: Sound, tmp_path: Path) -> None:
    """What the cases damage is without a fault, so the damage is what they fail for."""
    placed(kind, sound, tmp_path)
    for command in SOUND[kind]:
        arguments = [part.format(given=GIVEN[kind]) for part in COMMANDS[command]]
        arguments += ["--force"] if "-o" in arguments else []
        told = server.run(*arguments, cwd=tmp_path)
        # Random weights of one layer are no model of anything: a threshold may not be met.
        assert told.code in ((0, 4) if command in ("verify", "reference") else (0,)), told.err
        assert told.err.count("\n") <= 1
