"""Runtimes open nothing of an artefact but its own files, and no decoy, by strace."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.decoys.decoy import GGUF, HARMLESS, HF, NAMED, ONNX, Decoy, file
from tests.decoys.table import DECOYS, GRAPH
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


def folder_of_decoy(artefact: Path) -> Path:
    """The folder that an artefact and its decoys have for themselves."""
    return next(path for path in artefact.resolve().parents if path.name.isdigit())


def own_names(artefact: Path) -> set[str]:
    """The paths of the own files of an artefact, or of that of a graph, in that folder."""
    name = artefact.resolve().relative_to(folder_of_decoy(artefact)).parts[0]
    return {name, *(f"{name}/{own}" for own in OWN)}


def contents(artefact: Path) -> dict[str, bytes]:
    """The contents of an artefact's own files, by their names."""
    files = [artefact] if artefact.is_file() else [artefact / name for name in OWN]
    return {str(path): path.read_bytes() for path in files if path.is_file()}


def planted_in_few(
    decoys: list[Decoy], kind: str, planted: Callable[[Decoy], Path]
) -> dict[str, Path]:
    """Plant decoys: those that lie beside the artefact's own files all in one, others each alone.

    Returns the artefacts by the name of the decoy.
    """
    beside = planted(Decoy("beside", kind, lambda artefact: None))
    own = contents(beside)
    artefacts = {"everything beside": beside / GRAPH if kind == ONNX else beside}
    for decoy in decoys:
        artefact = planted(decoy)
        is_changed = set(contents(artefact).values()) != set(own.values())
        if is_changed or decoy.name == "an adapter":  # beside an adapter nothing is admitted
            artefacts[decoy.name] = artefact / decoy.graph
        else:
            decoy.plant(beside)
    assert contents(beside) == own
    return artefacts


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runtime_opens_only_files_that_were_admitted(
    runtime: str, planted: Callable[[Decoy], Path], tmp_path: Path
) -> None:
    format_name, kind = RUNTIMES[runtime]
    decoys = [decoy for decoy in DECOYS if decoy.kind == kind]
    artefacts = planted_in_few(decoys, kind, planted)
    command = [sys.executable, "-m", "tests.decoys.open_all", format_name, runtime]
    command += [str(artefact) for artefact in artefacts.values()]
    trace = traced(command, tmp_path / "strace", {"PYTHONPATH": str(ROOT)})
    outcomes = json.loads(trace.output)
    refused = {name: text for name, path in artefacts.items() if (text := outcomes[str(path)])}
    harmless = {decoy.name for decoy in decoys if decoy.answer in (HARMLESS, NAMED)}
    assert not refused.keys() & {"everything beside", *harmless}
    wrong = {
        name: sorted(unexpected)
        for name, artefact in artefacts.items()
        if (unexpected := within(trace.files, folder_of_decoy(artefact)) - own_names(artefact))
    }
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
