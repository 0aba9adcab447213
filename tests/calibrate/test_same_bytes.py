"""The same input gives the same bytes, on several threads too.

Functions that MKL computes have to be called on one thread first (warm_up_mkl). Without that only
one of about a hundred processes differs, so the calls themselves are watched here too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cgconvert.texts.text import read_text
from cgconvert.write.execute import execute
from tests.conftest import first_layers
from tests.support import plans

VECTOR_FUNCTIONS = (
    *("acos", "asin", "atan", "cos", "erf", "erfc", "erfinv", "exp", "log", "log10", "log2", "sin"),
    *("sqrt", "tan", "tanh", "trunc"),
)
"""Those that torch has MKL compute: aten/src/ATen/cpu/vml.h."""

ONE_THREAD = 2048
"""Elements that torch leaves to one thread: vml's grain in UnaryOpsKernel.cpp. A first call with
more of them would run on several threads, so warm_up_mkl has to come before it."""

WATCHED = """
import json, sys
import torch
from torch.utils._python_dispatch import TorchDispatchMode

first, most = {}, {}

class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        where = arguments[0] if arguments else None
        if isinstance(where, torch.Tensor) and where.device.type == "cpu":
            called = f"{function._opname.rstrip('_')} {where.dtype}"
            first.setdefault(called, where.numel())
            most[called] = max(most.get(called, 0), where.numel())
        return function(*arguments, **(options or {}))

from cgconvert import runtimes
from cgconvert.cli.main import main

# Calls in a runtime's own process are not seen here.
runtimes.open_class = lambda runtime, path, device, threads: runtime.open(path, device, threads)

path, *arguments = sys.argv[1:]
try:
    with Watch():
        main(arguments)
except SystemExit as left:
    if left.code:
        raise
json.dump([first, most], open(path, "w"))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's first layer in two formats, and a text."""
    where = tmp_path_factory.mktemp("same_bytes")
    source = first_layers(1)
    execute(plans.to_hf(source, where / "hf"))
    execute(plans.to_gguf(source, where / "plain.gguf", type="Q4_K"))
    text = "\n".join(read_text("stdlib", "calibration").documents)[:6_000]
    (where / "text.py").write_text(text)
    return where


@pytest.mark.parametrize("options", ["-o {}/four.gguf", "--format onnx -o {}/four"])
def test_two_runs_on_two_threads_give_the_same_bytes(folder: Path, options: str) -> None:
    """The bytes of all files, the manifest's too."""
    quantize, runs = "-m cgconvert quantize hf --bits 4 --calibration text.py", []
    for where in (folder / "first", folder / "second"):
        run(folder, *f"{quantize} {options.format(where)}".split(), OMP_NUM_THREADS="2")
        files = [path for path in where.rglob("*") if path.is_file()]
        runs.append({path.relative_to(where): path.read_bytes() for path in files})
    assert len(runs[0]) > 1
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("command", "function"),
    [
        ("quantize hf --bits 4 --calibration text.py -o fitted.gguf", "sin"),
        ("verify hf --reference hf --text text.py --text-tokens 512", "tanh"),
        ("verify plain.gguf --reference hf --text text.py --text-tokens 512", "sqrt"),
    ],
)
def test_first_calls_of_mkl_functions_are_small(folder: Path, command: str, function: str) -> None:
    run(folder, "-c", WATCHED, "calls.json", *command.split())
    first, most = json.loads((folder / "calls.json").read_text())
    shared_out = {
        called: first[called]
        for called, elements in most.items()
        if called.split()[0] in VECTOR_FUNCTIONS and elements > ONE_THREAD
    }
    assert f"{function} torch.float32" in shared_out
    assert set(shared_out.values()) == {1}, shared_out


def run(where: Path, *arguments: str, **environment: str) -> None:
    command = [sys.executable, *arguments]
    subprocess.run(command, cwd=where, check=True, env=os.environ | environment)
