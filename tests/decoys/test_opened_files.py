"""Runtimes open nothing of an artefact but its own files, and no decoy, by strace."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.decoys.decoy import GGUF, HARMLESS, HF, NAMED, ONNX, Decoy, file
from tests.decoys.table import DECOYS
from tests.support.traced import OpenedFile, traced

ROOT = Path(__file__).parents[2]
OWN = frozenset((
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "model.safetensors", "genai_config.json", "onnx/model.onnx",
    "onnx/model.onnx_data",
))  # fmt: skip
"""The files of the right artefacts, and their template; each of them is checked."""

RUNTIMES = {
    "transformers": ("huggingface", HF), "onnxruntime": ("onnx", ONNX),
    "onnxruntime-genai": ("onnx", ONNX), "llama.cpp": ("gguf", GGUF),
}  # fmt: skip


def within(files: tuple[OpenedFile, ...], folder: Path) -> set[str]:
    """The paths below a folder that a program opened or tried to open."""
    names = {Path(os.path.realpath(file.path.parent)) / file.path.name for file in files}
    return {str(name.relative_to(folder)) for name in names if name.is_relative_to(folder)}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runtime_opens_only_files_that_were_admitted(
    runtime: str, planted: Callable[[Decoy], Path], tmp_path: Path
) -> None:
    format_name, kind = RUNTIMES[runtime]
    decoys = [
        Decoy("nothing", kind, lambda artefact: None, HARMLESS),
        *(decoy for decoy in DECOYS if decoy.kind == kind),
    ]
    artefacts = {decoy.name: planted(decoy) for decoy in decoys}
    paths = {decoy.name: str(artefacts[decoy.name] / decoy.graph) for decoy in decoys}
    command = [sys.executable, "-m", "tests.decoys.open_all", format_name, runtime, *paths.values()]
    trace = traced(command, tmp_path / "strace", {"PYTHONPATH": str(ROOT)})
    outcomes = json.loads(trace.output)
    ran = {name for name, path in paths.items() if not outcomes[path]}
    harmless = {decoy.name for decoy in decoys if decoy.answer in (HARMLESS, NAMED)}
    assert ran >= harmless, {name: outcomes[paths[name]] for name in harmless - ran}
    wrong = {}
    for name, artefact in artefacts.items():
        opened = within(trace.files, artefact.parent.resolve())
        own = {artefact.name} | {f"{artefact.name}/{name}" for name in OWN}
        if unexpected := opened - own:
            wrong[name] = sorted(unexpected)
    assert not wrong


def test_strace_sees_what_a_process_of_a_process_opens(tmp_path: Path) -> None:
    """The test above can fail: files of any name are seen, those that are not there too."""
    file('some folder/a "name"\t\u00e9', b"")(tmp_path)
    code = (
        "import os, pathlib, subprocess, sys\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "subprocess.run(['cat', 'some folder/a \"name\"\\t\\u00e9', 'missing'])\n"
        "os.open('kept', os.O_RDONLY, dir_fd=os.open('some folder', os.O_DIRECTORY)) "
        "if os.path.exists('some folder/kept') else None\n"
    )
    (tmp_path / "some folder" / "kept").touch()
    trace = traced([sys.executable, "-c", code], tmp_path / "strace")
    assert within(trace.files, tmp_path.resolve()) >= {
        "some folder/a \"name\"\t\u00e9", "missing", "some folder/kept",
    }  # fmt: skip
