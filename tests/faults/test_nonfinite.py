"""NaN, infinity and overflow are refused, unless --allow-nonfinite keeps them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cgconvert.formats.gguf.header import read_header
from cgconvert.formats.gguf.reader import tensors
from tests.faults.server import Server
from tests.faults.valid_inputs import ValidInputs

HEAD, NORM = "lm_head.weight", "transformer.ln_f.bias"


def write_nonfinite(valid_inputs: ValidInputs, folder: Path, number: float) -> None:
    """Write a checkpoint in which two numbers of a matrix and one of a vector are `number`."""
    file = valid_inputs.copy("safetensors", folder) / "model.safetensors"
    state = load_file(file)
    state[HEAD][7, 5] = state[HEAD][4000, 63] = state[NORM][3] = number
    save_file(state, file)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 70000.0, -70000.0])
def test_nonfinite_numbers_are_refused_unless_allowed(
    number: float, server: Server, valid_inputs: ValidInputs, tmp_path: Path
) -> None:
    write_nonfinite(valid_inputs, tmp_path, number)
    command = ("to-hf", "source", "-o", "out", "--dtype", "float16")
    outcome = server.run(*command, cwd=tmp_path)
    finite = math.isfinite(number)
    fault = "1 values overflow F16" if finite else "1 values are NaN or infinite"
    assert (outcome.code, outcome.err.count("\n")) == (3, 1)
    assert f"source/model.safetensors: tensor {NORM}: {fault}" in outcome.err
    assert "--allow-nonfinite" in outcome.err
    assert not (tmp_path / "out").exists()
    outcome = server.run(*command, "--allow-nonfinite", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    written = load_file(tmp_path / "out" / "model.safetensors")
    expected = torch.tensor([number]).half()
    for value in (written[HEAD][7, 5], written[HEAD][4000, 63], written[NORM][3]):
        assert torch.equal(value.isnan(), expected[0].isnan())
        assert value.isnan() or value == expected[0]
    assert int((~written[HEAD].isfinite()).sum()) == 2


def test_float32_holds_a_number_beyond_float16(
    server: Server, valid_inputs: ValidInputs, tmp_path: Path
) -> None:
    write_nonfinite(valid_inputs, tmp_path, 70000.0)
    command = ("to-gguf", "source", "--type", "F32", "-o", "out.gguf")
    assert server.run(*command, cwd=tmp_path).code == 0
    path = tmp_path / "out.gguf"
    assert float(tensors(path, read_header(path))["output.weight"].read()[7, 5]) == 70000.0


@pytest.mark.parametrize(
    ("command", "number", "message"),
    [
        (("to-gguf", "--type", "Q8_0"), math.nan, "2 values are NaN"),
        (("to-gguf", "--type", "Q4_0"), 1e9, "2 rows cannot be Q4_0"),
        (
            ("quantize", "--bits", "4", "--format", "onnx", "--effort", "fast"),
            1e9,
            "2 rows cannot be Q8",
        ),
    ],
)
def test_a_quantized_type_is_refused_nonfinite_numbers(
    command: tuple[str, ...],
    number: float,
    message: str,
    server: Server,
    valid_inputs: ValidInputs,
    tmp_path: Path,
) -> None:
    """A scale of NaN would take 32 weights with it."""
    write_nonfinite(valid_inputs, tmp_path, number)
    state = load_file(tmp_path / "source/model.safetensors")
    state[NORM][3] = 0
    save_file(state, tmp_path / "source/model.safetensors")
    output = "out.gguf" if "to-gguf" in command else "out"
    outcome = server.run(*command, "source", "-o", output, "--allow-nonfinite", cwd=tmp_path)
    assert (outcome.code, outcome.err.count("\n")) == (3, 1)
    assert f"tensor {HEAD}: {message}" in outcome.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]
