"""ONNX folders: what the graph computes, what is in it and what lies beside it.

The oracle is transformers' CodeGenForCausalLM in float32.
"""

from __future__ import annotations

import json
import os
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from cgconvert.codecs.matmul_nbits import MatMulNBits
from cgconvert.errors import InputError, UsageError
from cgconvert.formats.onnx import reader
from cgconvert.formats.onnx.variant import Variant
from cgconvert.formats.onnx.weights import QKV, weights
from cgconvert.formats.onnx.writer import plan
from cgconvert.model.decoder import Checkpoint, Decoder, Geometry
from cgconvert.model.tensor import InMemoryTensor, LazyTensor
from cgconvert.model.tensor_names import CODEGEN, ONNX
from cgconvert.runtimes.genai import GenaiRuntime
from cgconvert.runtimes.onnxruntime import OnnxRuntime
from cgconvert.testing import synthetic
from tests.support.onnx_models import (
    GEOMETRIES,
    LENGTHS,
    THREADS,
    VARIANTS,
    Model,
    logits_of,
    make,
    relative_error,
    transformers_model,
)


@pytest.fixture(scope="module", params=GEOMETRIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make(GEOMETRIES[request.param], tmp_path_factory.mktemp("onnx"))


def test_float32_is_transformers(model: Model) -> None:
    """A full pass, then a prefill, a chunk on top of it and single tokens."""
    runtime = OnnxRuntime.open(model.artefact("model"), "cpu", THREADS)
    for ids in model.prompts():
        expected = model.logits(ids)
        runtime.reset()
        assert relative_error(runtime.feed(ids), expected) <= 1e-5
        runtime.reset()
        pieces = (ids[:2], ids[2:10], *([token] for token in ids[10:]))
        cached = np.concatenate([runtime.feed(piece) for piece in pieces])
        assert relative_error(cached, expected) <= 1e-5


def test_float16_is_close_to_transformers(model: Model) -> None:
    for kind in ("model_fp16", "model_cuda"):
        runtime = OnnxRuntime.open(model.artefact(kind), "cpu", THREADS)
        for ids in model.prompts():
            runtime.reset()
            logits = np.concatenate([runtime.feed(ids[:2]), runtime.feed(ids[2:])])
            assert logits.dtype == np.float32
            assert 1e-6 < relative_error(logits, model.logits(ids)) <= 2e-3


def test_a_graph_for_cuda_refuses_unsupported_options(small: Model) -> None:
    runtime = OnnxRuntime.open(small.artefact("model_cuda"), "cpu", THREADS)
    with pytest.raises(UsageError, match="no padding before a prompt"):
        runtime.batch(small.prompts())


def test_float16_does_not_overflow(tmp_path: Path) -> None:
    """Branches within float16's range whose sum, the residual stream, leaves it (65504).

    transformers in float16 gives NaN there; the graphs keep that sum in float32. The CPU computes
    most of a float16 graph in float32, so every value between is fetched in its own type.
    """
    model = make(replace(GEOMETRIES[64], n_layer=8), tmp_path, gain=60_000)
    ids = model.prompts()[0]
    with torch.inference_mode():
        hidden = model.theirs(torch.tensor([ids]), output_hidden_states=True).hidden_states
        assert float(hidden[1].abs().max()) < 40_000
        assert float(hidden[7].abs().max()) > 70_000
        half = deepcopy(model.theirs).half()(torch.tensor([ids])).logits
    assert not half.isfinite().all()
    for kind in ("model_fp16", "model_cuda"):
        runtime = OnnxRuntime.open(model.artefact(kind), "cpu", THREADS)
        logits = np.concatenate([runtime.feed(ids[:20]), *(runtime.feed([i]) for i in ids[20:])])
        assert relative_error(logits, model.logits(ids)) <= 5e-3
        values = every_value(model.graph(kind), ids)
        assert np.abs(values["layers.7.residual"]).max() > 70_000
        for name, value in values.items():
            assert np.isfinite(value).all(), name


def every_value(graph: Path, ids: list[int]) -> dict[str, np.ndarray]:
    """What each node of a float16 graph gives for a prompt, by name."""
    proto = onnx.load(graph, load_external_data=False)
    proto.graph.output.extend(proto.graph.value_info)
    shown = graph.with_name("shown.onnx")
    onnx.save(proto, shown)
    session = onnxruntime.InferenceSession(str(shown))
    inputs: dict[str, Any] = {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float16)
        for value in session.get_inputs()
        if value.name.startswith("past")
    }
    inputs |= {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
    inputs["position_ids"] = np.arange(len(ids))[None]
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def test_a_left_padded_batch_decodes_on(small: Model) -> None:
    """The position_ids are those of transformers: 1 for padding, then from 0 in each row."""
    session = onnxruntime.InferenceSession(str(small.artefact("model") / "onnx/model.onnx"))
    prompts = small.prompts()
    width, new = max(LENGTHS), [7, 8, 9]
    tokens, mask = np.zeros((3, width), np.int64), np.zeros((3, width), np.int64)
    for row, ids in enumerate(prompts):
        tokens[row, width - len(ids) :] = ids
        mask[row, width - len(ids) :] = 1
    past = {f"past_key_values.{i}.{part}": np.zeros((3, 4, 0, 64), np.float32)
            for i in range(2) for part in ("key", "value")}  # fmt: skip
    logits = []
    for step in range(len(new) + 1):
        positions = np.where(mask, mask.cumsum(axis=1) - 1, 1)[:, -tokens.shape[1] :]
        inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions, **past}
        first, *present = session.run(None, inputs)
        logits.append(first[:, -1])
        past = dict(zip(past, present, strict=True))
        tokens = np.full((3, 1), new[step % len(new)])
        mask = np.concatenate([mask, np.ones((3, 1), np.int64)], axis=1)
    for row, ids in enumerate(prompts):
        expected = small.logits(ids + new)[-len(new) - 1 :]
        assert relative_error(np.stack(logits)[:, row], expected) <= 1e-5


def test_a_batch_padded_after_its_prompts_decodes_on(small: Model) -> None:
    """Padding as in genai: a row continues at the end of the mask, in the cache at its padding."""
    session = onnxruntime.InferenceSession(str(small.graph("model")))
    prompts = small.prompts()
    width, new = max(LENGTHS), [7, 8, 9]
    tokens = np.array([ids + [5] * (width - len(ids)) for ids in prompts])
    mask = np.array([[1] * len(ids) + [0] * (width - len(ids)) for ids in prompts])
    past = {f"past_key_values.{i}.{part}": np.zeros((3, 4, 0, 64), np.float32)
            for i in range(2) for part in ("key", "value")}  # fmt: skip
    logits = []
    for step in range(len(new) + 1):
        positions = np.zeros_like(tokens)
        inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions, **past}
        first, *present = session.run(None, inputs)
        last = [len(ids) - 1 if step == 0 else 0 for ids in prompts]
        logits.append(first[np.arange(3), last])
        past = dict(zip(past, present, strict=True))
        tokens = np.full((3, 1), new[step % len(new)])
        mask = np.concatenate([mask, np.ones((3, 1), np.int64)], axis=1)
    for row, ids in enumerate(prompts):
        expected = small.logits(ids + new)[-len(new) - 1 :]
        assert relative_error(np.stack(logits)[:, row], expected) <= 1e-5


def dequantized(graph: Path, geometry: Geometry) -> Decoder:
    """The decoder that the codes in an artefact's data file stand for."""
    stored = reader.stored_tensors(graph)
    variant = Variant(**VARIANTS[graph.stem])
    shapes: dict[str, LazyTensor] = {}
    for name, source, encoding in weights(make_like(geometry), variant):
        if not isinstance(encoding, MatMulNBits):
            shapes[name] = InMemoryTensor(stored[name].read().float())
            continue
        names = [name + array.suffix for array in encoding.arrays(source.shape)]
        flat = [stored[n].read() for n in names]
        decoded = encoding.decode(flat, source.shape)
        i = next((i for i in range(geometry.n_layer) if name == QKV.format(i=i)), None)
        if i is None:
            shapes[name] = InMemoryTensor(decoded)
        else:
            parts = zip("qkv", decoded.split(geometry.n_embd), strict=True)
            shapes |= {ONNX.layer[p].format(i=i): InMemoryTensor(rows) for p, rows in parts}
    return ONNX.decoder(geometry, shapes, str(graph))


def make_like(geometry: Geometry) -> Decoder:
    state = synthetic.RandomState(geometry)
    return CODEGEN.decoder(geometry, {n: InMemoryTensor(state[n]) for n in state}, "shapes")


@pytest.mark.parametrize("stem", ["model_int8", "model_q4"])
def test_a_quantized_graph_computes_with_its_decoded_weights(
    small: Model, stem: str, tmp_path: Path
) -> None:
    """Exactly so with float activations; with int8 ones, as shipped, within their rounding."""
    folder = small.artefact(stem)
    graph = folder / "onnx" / f"{stem}.onnx"
    theirs = transformers_model(dequantized(graph, small.checkpoint.geometry))
    runtime = OnnxRuntime.open(folder, "cpu", THREADS)
    exact = tmp_path / "exact"
    (exact / "onnx").mkdir(parents=True)
    for file in (*folder.glob("*.json"), *folder.glob("*.txt"), graph.with_suffix(".onnx_data")):
        (exact / file.relative_to(folder)).write_bytes(file.read_bytes())
    proto = onnx.load(graph, load_external_data=False)
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                assert attribute.i == 4
                attribute.i = 0
    onnx.save(proto, exact / "onnx" / graph.name)
    floating = OnnxRuntime.open(exact, "cpu", THREADS)
    for ids in small.prompts():
        expected = logits_of(theirs, ids)
        runtime.reset()
        floating.reset()
        logits = np.concatenate([floating.feed(ids[:2]), floating.feed(ids[2:])])
        assert relative_error(logits, expected) <= 1e-5
        assert relative_error(runtime.feed(ids), expected) <= 0.05
        # And quantizing did lose something: it is not the source that was compared.
        assert relative_error(expected, small.logits(ids)) > 1e-3


@pytest.mark.parametrize("stem", ["model_int8", "model_q4", "model_q4f16", "model_cuda_q4"])
def test_every_quantized_variant_runs_everywhere(small: Model, stem: str) -> None:
    folder = small.artefact(stem)
    ids = small.prompts()[0]
    plain = OnnxRuntime.open(folder, "cpu", THREADS).feed(ids)
    genai = GenaiRuntime.open(folder, "cpu", THREADS).feed(ids)
    assert relative_error(genai, plain) <= 1e-5
    bound = 0.1 if stem == "model_int8" else 0.6  # random weights, sharp attention
    assert relative_error(plain, small.logits(ids)) <= bound


@pytest.mark.parametrize("stem", VARIANTS)
def test_the_graph_is_valid_and_its_interface_is_optimums(small: Model, stem: str) -> None:
    path = small.graph(stem)
    onnx.checker.check_model(str(path), full_check=True)
    proto = onnx.load(path, load_external_data=False)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    assert path.stat().st_size < 100_000
    kind = Variant(**VARIANTS[stem]).dtype.upper().replace("FLOAT32", "FLOAT")
    interface = {
        value.name: (
            onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type),
            *(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim),
        )
        for value in (*proto.graph.input, *proto.graph.output)
    }
    cache = (kind, "batch_size", 4, "past_sequence_length", 64)
    grown = (kind, "batch_size", 4, "total_sequence_length", 64)
    expected = {
        "input_ids": ("INT64", "batch_size", "sequence_length"),
        "attention_mask": ("INT64", "batch_size", "total_sequence_length"),
        "position_ids": ("INT64", "batch_size", "sequence_length"),
        "logits": (kind, "batch_size", "sequence_length", 4096),
    }
    for i in range(2):
        for part in ("key", "value"):
            expected[f"past_key_values.{i}.{part}"] = cache
            expected[f"present.{i}.{part}"] = grown
    if stem == "model_js":
        expected |= {
            "logits": (kind, "batch_size", "num_logits", 4096),
            "num_logits_to_keep": ("INT64",),
        }
    assert interface == expected
    known = {value.name for value in proto.graph.value_info} | interface.keys()
    made = {name for node in proto.graph.node for name in node.output if name}
    assert made <= known


@pytest.mark.parametrize("stem", VARIANTS)
def test_the_folder_is_a_whole_repository(small: Model, stem: str) -> None:
    folder = small.artefact(stem)
    variant = Variant(**VARIANTS[stem])
    stem = variant.stem
    assert sorted(os.listdir(folder / "onnx")) == [f"{stem}.onnx", f"{stem}.onnx_data"]
    config, generation, genai = (
        json.loads((folder / name).read_text())
        for name in ("config.json", "generation_config.json", "genai_config.json")
    )
    end = small.checkpoint.tokenizer.eos_token_id
    for ids in (config, generation, genai["model"]):
        assert (ids["bos_token_id"], ids["eos_token_id"]) == (end, end)
    assert config["model_type"] == "codegen"
    names = {"model": "fp32", "model_fp16": "fp16", "model_int8": "int8", "model_q4": "q4",
             "model_q4f16": "q4f16"}  # fmt: skip
    for_js = config["transformers.js_config"]
    assert for_js["dtype"] == names[stem]
    assert for_js["use_external_data_format"] is True
    decoder = genai["model"]["decoder"]
    providers: list[dict[str, object]] = [{"cuda": {}}] if variant.target == "cuda" else []
    assert decoder["session_options"]["provider_options"] == providers
    assert (folder / decoder["filename"]).is_file()
    assert (decoder["head_size"], decoder["num_attention_heads"]) == (64, 4)
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(os.listdir(folder))


def test_large_tensors_lie_on_pages_and_none_overlap(small: Model) -> None:
    extents = sorted(
        (array_plan.offset, array_plan.nbytes)
        for tensor_plan in plan(small.checkpoint, Path("nowhere")).tensors
        for array_plan in tensor_plan.arrays
    )
    end = 0
    for offset, nbytes in extents:
        assert offset >= end
        assert offset % (4096 if nbytes >= 1 << 20 else 64) == 0
        end = offset + nbytes


def test_a_plan_is_the_same_every_time(small: Model) -> None:
    for options in VARIANTS.values():
        one, other = (plan(small.checkpoint, Path("nowhere"), **options) for _ in range(2))
        assert [(f.path, f.header, f.size) for f in one.files] == [
            (f.path, f.header, f.size) for f in other.files
        ]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": "float16", "bits": 8}, UsageError, "no ONNX variant"),
        ({"dtype": "bfloat16"}, UsageError, "no ONNX variant"),
        ({"bits": 3}, UsageError, "no ONNX variant"),
        ({"bits": 4, "block_size": 48}, UsageError, "block size 48: give 16, 32, 64, 128 or 256"),
        ({"bits": 4, "accuracy_level": 5}, UsageError, "accuracy level 5: give 0, 1, 2, 3 or 4"),
    ],
)
def test_impossible_options_are_refused(
    small: Model, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan(small.checkpoint, Path("nowhere"), **options)


@pytest.mark.parametrize(("n_embd", "rotary_dim"), [(96, 16), (256, 24)])
def test_geometries_that_onnxruntime_does_not_take_are_refused(
    n_embd: int, rotary_dim: int
) -> None:
    geometry = replace(GEOMETRIES[64], n_embd=n_embd, n_inner=0, rotary_dim=rotary_dim)
    decoder = make_like(geometry)
    checkpoint = Checkpoint("x", Path("x"), "torch", {}, decoder, None, ())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="multiple of 16"):
        plan(checkpoint, Path("nowhere"))
