"""What the commands import: help, mistakes of usage, completion and plans start without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import cgconvert
from cgconvert import embedded
from cgconvert.cli.commands import command_names
from cgconvert.model.family import NAMES

SOURCE = embedded.NAME

RUNTIMES = ("torch", "transformers", "optimum", "onnxruntime", "onnxruntime_genai", "llama_cpp")
"""Libraries that no headers and no plan need."""

READERS = (*RUNTIMES, "numpy", "tokenizers", "onnx", "gguf", "yaml", "safetensors")
"""Libraries that help, mistakes of usage and completion do without."""

SCRIPT = """
import json, sys
from cgconvert.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as leaving:
    code = leaving.code
print(json.dumps([code, sorted(sys.modules)]))
"""


def start(folder: Path, *arguments: str, **environment: str) -> tuple[int, set[str], str]:
    """Run a command in a new process; return its exit code, what it imported, and its output."""
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True, text=True, cwd=folder, env={**os.environ, **environment}, check=True,
    )  # fmt: skip
    *output, report = finished.stdout.splitlines()
    code, modules = json.loads(report)
    return code or 0, set(modules), "\n".join(output)


USAGE: dict[str, tuple[list[str], int]] = {
    "alone": ([], 2),
    "help": (["--help"], 0),
    "version": (["--version"], 0),
    "unknown command": (["to-nothing"], 2),
    "unknown option": (["to-gguf", SOURCE, "--nothing"], 2),
    "missing argument": (["to-onnx"], 2),
    "wrong choice": (["to-hf", SOURCE, "--dtype", "int3"], 2),
    "no number": (["quantize", SOURCE, "--bpw", "x"], 2),
    "no size": (["to-hf", SOURCE, "--max-shard-size", "lots"], 2),
    "no threshold": (["verify", "--threshold", "nothing=1"], 2),
    "no option's value": (["run", "--source"], 2),
    **{f"help of {name}": ([name, "--help"], 0) for name in command_names()},
}


@pytest.mark.parametrize("case", USAGE)
def test_usage_needs_the_declarations_alone(case: str, tmp_path: Path) -> None:
    arguments, expected = USAGE[case]
    code, modules, output = start(tmp_path, *arguments)
    assert code == expected
    assert modules.isdisjoint(READERS)
    assert bool(output) == (expected == 0)


PLANS: dict[str, list[str]] = {
    "inspect": ["inspect", SOURCE],
    "inspect as JSON": ["inspect", SOURCE, "--json"],
    "to-hf": ["to-hf", SOURCE, "--dry-run"],
    "to-hf in shards": ["to-hf", SOURCE, "--dry-run", "--layout", "phi", "--max-shard-size", "4MB"],
    "to-gguf": ["to-gguf", SOURCE, "--dry-run"],
    "to-gguf in blocks": ["to-gguf", SOURCE, "--dry-run", "--type", "Q4_K_M", "--tensors"],
    "to-onnx": ["to-onnx", SOURCE, "--dry-run"],
    "to-onnx in blocks": ["to-onnx", SOURCE, "--dry-run", "--bits", "4"],
    "run": ["run", "recipe.yaml", "--dry-run"],
    "run --list": ["run", "--list"],
    "clean": ["clean"],
    "cache": ["cache"],
}

RECIPE = f"source: {SOURCE}\nsteps:\n  - to-hf\n  - to-onnx: {{bits: 8}}\n  - to-gguf\n"


@pytest.mark.parametrize("case", PLANS)
def test_headers_and_plans_need_no_runtime(case: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    code, modules, output = start(tmp_path, *PLANS[case])
    assert code == 0
    assert modules.isdisjoint(RUNTIMES)
    assert output or case == "clean"
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize("type_", ["torch", "gguf", "onnx"])
def test_other_layouts_are_inspected_without_a_runtime(type_: str, tmp_path: Path) -> None:
    """Each reader of headers; the artefacts are written in one process before."""
    if type_ == "gguf":
        path = cgconvert.to_gguf(SOURCE, tmp_path / "x.gguf", type="Q8_0").path
    elif type_ == "onnx":
        path = cgconvert.to_onnx(SOURCE, tmp_path / "onnx").path
    else:
        path = cgconvert.to_hf(SOURCE, tmp_path / "hf").path
        (weights,) = path.glob("*.safetensors")
        torch.save(load_file(weights), path / "pytorch_model.bin")
        weights.unlink()
    code, modules, output = start(tmp_path, "inspect", str(path))
    assert code == 0
    assert modules.isdisjoint(RUNTIMES)
    assert SOURCE in output


COMPLETIONS: dict[str, tuple[str, list[str]]] = {
    "commands": ("to-", ["to-gguf", "to-hf", "to-onnx"]),
    "options": ("to-gguf x --ty", ["--type"]),
    "choices": ("to-hf x --layout p", ["phi"]),
    "choices in any case": ("to-gguf x --type q8", ["Q8_0"]),
    "a word for a number": ("to-hf x --mp-num a", ["auto"]),
    "sources": ("to-gguf codegen-350M-m", [n for n in NAMES if n.startswith("codegen-350M-m")]),
    "sources in any case": ("inspect CODEGEN-TINY", [SOURCE]),
    "names and paths": ("inspect codegen-t", [SOURCE, "codegen-tuned/"]),
    "paths": ("to-onnx ./codegen-t", ["file"]),
    "recipes": ("run codegen-tiny", [SOURCE]),
    "recipes of published models": (
        "run codegen-6B-mu",
        ["codegen-6B-multi", "codegen-6B-multi-gptj"],
    ),
    "a source of a recipe": ("run codegen-tiny-mono --source codegen2-1B_", ["codegen2-1B_P"]),
    "a reference": ("verify x --reference codegen-2B-n", ["codegen-2B-nl"]),
    "a text": ("verify x --text s", ["stdlib"]),
}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("case", COMPLETIONS)
def test_a_shell_completes(case: str, shell: str, tmp_path: Path) -> None:
    typed, expected = COMPLETIONS[case]
    (tmp_path / "codegen-tuned").mkdir()
    words = f"cgconvert {typed}"
    last = words.rsplit(" ", 1)[1]
    count = str(len(words.split()) - 1)
    code, modules, output = start(
        tmp_path, _CGCONVERT_COMPLETE=f"{shell}_complete", COMP_WORDS=words,
        COMP_CWORD=last if shell == "fish" else count,
    )  # fmt: skip
    assert code == 0
    assert modules.isdisjoint(READERS)
    lines = output.split("\n")
    if shell == "zsh":  # kind, value and help are lines of their own
        completed = [line for line in lines if line in expected]
        assert len(lines) == 3 * len(expected)
    else:
        kinds = [line.split(",", 1) for line in lines]
        completed = ["file" if kind == "file" else value.split("\t")[0] for kind, value in kinds]
    assert sorted(completed) == sorted(expected)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_script_for_a_shell_names_the_command(shell: str, tmp_path: Path) -> None:
    code, modules, output = start(tmp_path, _CGCONVERT_COMPLETE=f"{shell}_source")
    assert code == 0
    assert f"_CGCONVERT_COMPLETE={shell}_complete" in output
    assert modules.isdisjoint(READERS)
