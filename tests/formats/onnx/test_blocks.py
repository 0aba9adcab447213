"""Quantized ONNX folders: their options, their size, and that GGUF has the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from click.testing import CliRunner

from cgconvert import embedded
from cgconvert.cli.main import cli
from cgconvert.codecs.matmul_nbits import MatMulNBits
from cgconvert.codecs.matmul_nbits_choices import BLOCK_SIZES
from cgconvert.codecs.quantized_tensor import QuantizedTensor
from cgconvert.errors import InputError
from cgconvert.formats.gguf import reader as gguf
from cgconvert.formats.gguf.header import read_header
from cgconvert.formats.onnx.reader import decoded_tensors
from cgconvert.formats.onnx.weights import QKV
from cgconvert.formats.onnx.writer import plan
from cgconvert.formats.read import read
from cgconvert.model import family
from cgconvert.model.decoder import Checkpoint, Decoder, Geometry
from cgconvert.model.dtype import FLOAT16
from cgconvert.model.tensor import Zeros
from cgconvert.model.tensor_names import CODEGEN, GGUF, ONNX
from cgconvert.runtimes.onnxruntime import OnnxRuntime
from cgconvert.testing import synthetic
from cgconvert.write.execute import execute
from tests.support import plans
from tests.support.onnx_models import GEOMETRIES, THREADS, Model, relative_error


def shapes_of(geometry: Geometry) -> Checkpoint:
    """A checkpoint of a geometry without numbers, for what only a plan is needed."""
    shapes = {n: Zeros(shape, FLOAT16) for n, shape in synthetic.tensor_shapes(geometry).items()}
    decoder: Decoder = CODEGEN.decoder(geometry, shapes, "shapes")
    tiny = read(embedded.NAME)
    return Checkpoint("x", Path("x"), "torch", {}, decoder, tiny.tokenizer, ())


@pytest.mark.parametrize("size", family.SIZES)
def test_int4_takes_at_most_4_7_bits_a_weight(size: str) -> None:
    """4 of the code, 16 / 32 of the scale, 4 / 32 of the zero point; head and embedding have 8."""
    geometry = family.SIZES[size]
    nbytes, weights, whole = 0, 0, 0
    made = plan(shapes_of(geometry), Path("nowhere"), bits=4)
    for tensor_plan in made.tensors:
        whole += sum(array_plan.nbytes for array_plan in tensor_plan.arrays)
        if tensor_plan.encoding.name.startswith("Q4"):
            nbytes += sum(array_plan.nbytes for array_plan in tensor_plan.arrays)
            weights += tensor_plan.source.shape[0] * tensor_plan.source.shape[1]
    per_layer = 4 * geometry.n_embd**2 + 2 * geometry.n_embd * geometry.n_inner
    assert weights == geometry.n_layer * per_layer
    assert 8 * nbytes / weights == 4.625
    assert 8 * whole / geometry.parameters < {"350M": 5.8, "2B": 5.1}.get(size, 4.9)


def test_symmetric_int4_is_q4_0(tmp_path: Path) -> None:
    """The embedded model's matrices, decoded from both files: equal to the last bit."""
    checkpoint = read(embedded.NAME)
    for made in (
        plans.to_gguf(checkpoint, tmp_path / "x.gguf", type="Q4_0"),
        plans.to_onnx(checkpoint, tmp_path / "onnx", bits=4, symmetric=True),
    ):
        execute(made)
    ours = decoded_tensors(tmp_path / "onnx/onnx/model_q4.onnx")
    theirs = gguf.tensors(tmp_path / "x.gguf", read_header(tmp_path / "x.gguf"))
    for i in range(checkpoint.geometry.n_layer):
        qkv = [theirs[GGUF.layer[part].format(i=i)].read() for part in "qkv"]
        assert torch.equal(ours[QKV.format(i=i)].read(), torch.cat(qkv))
        for part in ("o", "fc_in", "fc_out"):
            matrix = ours[ONNX.layer[part].format(i=i)]
            assert isinstance(matrix, QuantizedTensor)
            assert isinstance(matrix.codec, MatMulNBits)
            assert matrix.codec.symmetric
            assert torch.equal(matrix.read(), theirs[GGUF.layer[part].format(i=i)].read())


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("bits", [4, 8])
def test_every_block_size_runs(small: Model, bits: int, block_size: int, tmp_path: Path) -> None:
    made = plan(small.checkpoint, tmp_path / "x", bits=bits, block_size=block_size)
    execute(made)
    ids = small.prompts()[0]
    error = relative_error(
        OnnxRuntime.open(made.output, "cpu", THREADS).feed(ids), small.logits(ids)
    )
    assert error <= (0.1 if bits == 8 else 0.9)  # random weights, sharp attention
    matrix = decoded_tensors(made.output / "onnx" / f"{_stem(bits)}.onnx")[QKV.format(i=0)]
    assert isinstance(matrix, QuantizedTensor)
    assert matrix.codec.block_size == block_size


def _stem(bits: int) -> str:
    return {4: "model_q4", 8: "model_int8"}[bits]


def test_a_matrix_that_does_not_divide_is_named() -> None:
    checkpoint = shapes_of(GEOMETRIES[80])
    with pytest.raises(InputError, match=r"\[4096, 320\] does not divide into blocks of 128"):
        plan(checkpoint, Path("nowhere"), bits=4, block_size=128)


OPTIONS = {"bits": 4, "block_size": 64, "symmetric": True, "accuracy_level": 1}


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str) -> None:
        result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output

    return invoke


def test_commands_and_recipes_mean_the_same(call: Any) -> None:
    """The options reach graph and manifest, by whichever way they were given."""
    options = ["--bits", "4", "--block-size", "64", "--symmetric", "--accuracy-level", "1"]
    call("to-onnx", embedded.NAME, "-o", "one", *options)
    rounded = ("--format", "onnx", "--effort", "fast")
    call("quantize", embedded.NAME, "-o", "two", *rounded, *options)
    step = json.dumps({"output": "three", **OPTIONS})
    Path("r.yaml").write_text(f"source: {embedded.NAME}\nsteps:\n  - to-onnx: {step}\n")
    call("run", "r.yaml")
    files = [json.loads(Path(f, "cgconvert.json").read_text()) for f in ("one", "two", "three")]
    assert all(file == files[0] for file in files)
    assert files[0]["options"] == {"dtype": "float32", "client": "any", "target": "cpu", **OPTIONS}
    nodes = {
        node.name: {a.name: a.i for a in node.attribute}
        for node in onnx.load("one/onnx/model_q4.onnx", load_external_data=False).graph.node
        if node.op_type == "MatMulNBits"
    }
    assert {node["accuracy_level"] for node in nodes.values()} == {1}
    head = nodes.pop("lm_head")
    assert (head["bits"], head["block_size"]) == (8, 128)
    assert {node["block_size"] for node in nodes.values()} == {64}
    symmetric = decoded_tensors(Path("one/onnx/model_q4.onnx"))[QKV.format(i=0)]
    assert isinstance(symmetric, QuantizedTensor)
    assert isinstance(symmetric.codec, MatMulNBits)
    assert symmetric.codec.symmetric


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_our_own_float_folder_is_a_source(call: Any, dtype: str) -> None:
    """The source is float16, so both folders hold its numbers: what comes out is the same."""
    call("to-onnx", embedded.NAME, "-o", "wanted", "--bits", "4")
    call("to-onnx", embedded.NAME, "-o", "float", "--dtype", dtype)
    rounded = ("--format", "onnx", "--effort", "fast")
    call("quantize", "float", "-o", "got", "--bits", "4", *rounded)
    for name in ("model_q4.onnx", "model_q4.onnx_data"):
        assert Path("got/onnx", name).read_bytes() == Path("wanted/onnx", name).read_bytes()
