"""Files of quantized types: what llama.cpp computes from them, and its own quantizer's beside."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from cgconvert import embedded
from cgconvert.codecs.encoding import FloatEncoding
from cgconvert.codecs.ggml import ENCODINGS
from cgconvert.codecs.quantized_tensor import QuantizedTensor
from cgconvert.errors import InputError
from cgconvert.formats.gguf import reader
from cgconvert.formats.gguf.header import read_header
from cgconvert.formats.gguf.type_choices import QUANTIZED_TYPES, TYPE_CHOICES
from cgconvert.formats.gguf.types import TYPES, data_size
from cgconvert.formats.gguf.writer import header_size, plan
from cgconvert.formats.read import read as read_source
from cgconvert.model.decoder import Checkpoint, Geometry
from cgconvert.model.tensor import InMemoryTensor
from cgconvert.model.tensor_names import CODEGEN
from cgconvert.runtimes.llamacpp import LlamaCppRuntime
from cgconvert.testing import synthetic
from cgconvert.texts import corpus
from cgconvert.write.execute import execute
from tests.support.gguf_models import prompt, random_checkpoint, reference, tokenizer
from tests.support.logit_distances import kl_divergence

MIXES = ["Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"]
DEEP = Geometry(
    n_layer=20, n_embd=256, n_head=4, rotary_dim=32, n_positions=64, vocab_size=4096, mp_num=4
)
"""A geometry with the number of layers of 350M, so that every rule about layers shows."""


def write(checkpoint: Checkpoint, folder: Path, type: str) -> Path:  # noqa: A002
    output = folder / f"{type}.gguf"
    execute(plan(checkpoint, output, type=type))
    return output


def llama_quantize(source: Path, type: str) -> Path:  # noqa: A002
    """llama.cpp's own quantizer, which many tools call."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = int(TYPES[type].number), 1
    output = source.with_name(f"llama-quantize-{type}.gguf")
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(output).encode(), ctypes.byref(parameters)
    )
    assert status == 0
    return output


def divergence(path: Path, expected: np.ndarray, ids: tuple[int, ...]) -> float:
    runtime = LlamaCppRuntime.open(path, "cpu", 1)
    try:
        logits = runtime.feed(ids)[:, : expected.shape[1]]
    finally:
        runtime.close()
    return float(kl_divergence(expected, logits).mean())


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    """A model of many layers, and its F16 file."""
    state = synthetic.RandomState(DEEP, seed=3)
    decoder = CODEGEN.decoder(DEEP, {n: InMemoryTensor(t) for n, t in state.items()}, "random")
    checkpoint = replace(random_checkpoint(64), decoder=decoder)
    return checkpoint, write(checkpoint, tmp_path_factory.mktemp("deep"), "F16")


@pytest.mark.parametrize("type_", MIXES)
def test_mix_is_llama_quantizes(type_: str, deep: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    checkpoint, source = deep
    ours = read_header(write(checkpoint, tmp_path, type_))
    theirs = read_header(llama_quantize(source, type_))
    stored = {tensor.name: (tensor.type, tensor.shape, tensor.nbytes) for tensor in ours.tensors}
    assert stored == {t.name: (t.type, t.shape, t.nbytes) for t in theirs.tensors}
    for key in ("general.file_type", "general.quantization_version"):
        assert ours.metadata[key] == theirs.metadata[key]


@pytest.mark.parametrize("name", [name for name in TYPES if name in ENCODINGS])
def test_uniform_types_store_every_matrix_alike(name: str, tmp_path: Path) -> None:
    checkpoint = random_checkpoint(64)
    for tensor_plan in plan(checkpoint, tmp_path / "x.gguf", type=name).tensors:
        assert tensor_plan.encoding.name == (
            name if len(tensor_plan.source.shape) == 2 else "F32"
        ), tensor_plan.name


def test_encodings_are_those_of_gguf() -> None:
    for name, encoding in ENCODINGS.items():
        block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
        (array,) = encoding.arrays((2, 256))
        assert (array.dtype, array.row_bytes) == (name, 256 // block * nbytes)


@pytest.mark.parametrize("head", [64, 256])
@pytest.mark.parametrize(
    ("type_", "bound"),
    [("Q4_1", 0.1), ("Q3_K", 0.4), ("Q4_K_M", 0.1), ("Q5_K_M", 0.02), ("Q6_K", 5e-3)],
)
def test_logits_are_those_of_transformers(
    head: int, type_: str, bound: float, tmp_path: Path
) -> None:
    ids = prompt()
    path = write(random_checkpoint(head), tmp_path, type_)
    assert divergence(path, reference(head, ids), ids) <= bound


@pytest.mark.parametrize("type_", MIXES)
def test_embedded_model_loses_no_more_than_by_llama_quantize(type_: str, tmp_path: Path) -> None:
    """On trained weights and held-out text, in llama.cpp itself, at the same bytes."""
    from transformers import AutoModelForCausalLM

    checkpoint = read_source(str(embedded.path()))
    model = AutoModelForCausalLM.from_pretrained(embedded.path(), dtype=torch.float32).eval()
    ids = tuple(checkpoint.tokenizer.encode("\n".join(corpus.text("evaluation", 4000)))[:512])
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0, :, : checkpoint.tokenizer.size].numpy()
    ours = write(checkpoint, tmp_path, type_)
    theirs = llama_quantize(write(checkpoint, tmp_path, "F16"), type_)
    assert divergence(ours, expected, ids) <= divergence(theirs, expected, ids)


def test_files_of_llama_quantize_are_read(deep: tuple[Checkpoint, Path]) -> None:
    path = llama_quantize(deep[1], "Q4_K_M")
    tensors = reader.tensors(path, read_header(path))
    for tensor in gguf.GGUFReader(path).tensors:
        theirs = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(tensors[tensor.name].read().float(), theirs), tensor.name
    table = tensors["token_embd.weight"]
    assert torch.equal(table.read(slice(3, 9), slice(7, 90)), table.read()[3:9, 7:90])
    assert isinstance(table, QuantizedTensor)
    params = table.params(slice(3, 5))
    assert torch.equal(table.codec.values(params).reshape(2, -1), table.read(slice(3, 5)))
    assert reader.decoder(path).geometry.n_layer == DEEP.n_layer


def test_tokens_are_the_same(deep: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    runtime = LlamaCppRuntime.open(write(deep[0], tmp_path, "Q4_K_M"), "cpu", 1)
    try:
        assert runtime.tokenize("def f(x):\n    return x\n") == tokenizer().encode(
            "def f(x):\n    return x\n"
        )
    finally:
        runtime.close()


@pytest.mark.parametrize("adjusted", [(), ("blk.0.attn_output.bias", "output.bias")])
def test_the_length_of_a_file_is_known_without_a_plan(adjusted: tuple[str, ...]) -> None:
    source = read_source(embedded.NAME)
    header = header_size(source, adjusted)
    for type_ in TYPES:
        planned = plan(source, Path("x.gguf"), type=type_, adjusted=adjusted).nbytes
        assert header + data_size(source.decoder, type_) == planned, type_


def test_the_length_of_a_file_whose_rows_do_not_divide_is_refused() -> None:
    decoder = random_checkpoint(64).decoder
    narrow = replace(decoder, wte=InMemoryTensor(torch.zeros(8, 250)))
    with pytest.raises(InputError, match="250"):
        data_size(narrow, "Q4_K")


def test_the_choices_are_the_types() -> None:
    """The names stand apart from the encodings, because --help needs the names alone."""
    assert tuple(TYPES) == TYPE_CHOICES
    quantized = [n for n, kind in TYPES.items() if not isinstance(kind.encoding, FloatEncoding)]
    assert tuple(quantized) == QUANTIZED_TYPES
