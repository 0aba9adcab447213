"""ONNX artefacts as sources, and graphs whose word about their data is not to be taken."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from cgconvert.errors import InputError
from cgconvert.formats.onnx import reader
from cgconvert.formats.onnx.writer import plan
from cgconvert.formats.read import read
from cgconvert.model.tensor import LazyTensor
from cgconvert.runtimes.genai import GenaiRuntime
from cgconvert.runtimes.onnxruntime import OnnxRuntime
from cgconvert.write.execute import execute
from tests.support.onnx_models import THREADS, Model, copy


@pytest.mark.parametrize("stem", ["model", "model_fp16"])
def test_a_float_artefact_is_a_source(small: Model, stem: str) -> None:
    again = read(str(small.artefact(stem)))
    assert again.layout == "onnx"
    assert again.geometry == replace(small.checkpoint.geometry, mp_num=0)
    assert again.tokenizer.encode("a  b") == small.checkpoint.tokenizer.encode("a  b")
    for first, second in zip(again.decoder.layers, small.checkpoint.decoder.layers, strict=True):
        for field in fields(first):
            check_equal(getattr(first, field.name), getattr(second, field.name))
    for name in ("wte", "ln_f_weight", "ln_f_bias", "head", "head_bias"):
        check_equal(getattr(again.decoder, name), getattr(small.checkpoint.decoder, name))


def check_equal(first: LazyTensor, second: LazyTensor) -> None:
    assert first.shape == second.shape
    assert torch.equal(first.read().float(), second.read().float())
    half = slice(first.shape[0] // 3, first.shape[0] // 2)
    assert torch.equal(first.read(half).float(), second.read(half).float())


def test_a_quantized_artefact_is_no_source(small: Model) -> None:
    with pytest.raises(InputError, match="quantized"):
        read(str(small.artefact("model_q4")))


def test_another_rotary_base_is_kept(tmp_path: Path, small: Model) -> None:
    geometry = replace(small.checkpoint.geometry, rotary_base=500.0)
    decoder = replace(small.checkpoint.decoder, geometry=geometry)
    source = replace(small.checkpoint, decoder=decoder)
    execute(plan(source, tmp_path / "out"))
    assert read(str(tmp_path / "out")).geometry.rotary_base == 500.0
    stored = reader.stored_tensors(tmp_path / "out/onnx/model.onnx")
    expected = np.cos(100 / 500.0 ** (np.arange(0, 32, 2) / 32))
    assert np.allclose(stored["rotary.cos"].read()[100], expected, atol=1e-7)


def test_a_configuration_that_does_not_fit_the_graph_is_refused(
    small: Model, tmp_path: Path
) -> None:
    folder = copy(small, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rotary_dim": 64}))
    with pytest.raises(InputError, match="rotary table"):
        read(str(folder))


# Damaged and hostile files. Each case changes a copy of the folder.

Damage = Callable[[Path, onnx.ModelProto], None]


def external(key: str, value: str, name: str = "lm_head.weight") -> Damage:
    def change(graph: Path, proto: onnx.ModelProto) -> None:
        tensor = next(t for t in proto.graph.initializer if t.name == name)
        entry = next(e for e in tensor.external_data if e.key == key)
        entry.value = value

    return change


def removed(key: str) -> Damage:
    def change(graph: Path, proto: onnx.ModelProto) -> None:
        tensor = next(t for t in proto.graph.initializer if t.name == "lm_head.bias")
        kept = [e for e in tensor.external_data if e.key != key]
        del tensor.external_data[:]
        tensor.external_data.extend(kept)

    return change


def linked(graph: Path, proto: onnx.ModelProto) -> None:
    data = graph.with_suffix(".onnx_data")
    elsewhere = graph.parents[2] / "elsewhere.bin"
    data.rename(elsewhere)
    data.symlink_to(elsewhere)


def truncated(graph: Path, proto: onnx.ModelProto) -> None:
    data = graph.with_suffix(".onnx_data")
    os.truncate(data, data.stat().st_size - 1)


def missing(graph: Path, proto: onnx.ModelProto) -> None:
    graph.with_suffix(".onnx_data").unlink()


def twice(graph: Path, proto: onnx.ModelProto) -> None:
    tensor = next(t for t in proto.graph.initializer if t.name == "lm_head.bias")
    proto.graph.initializer.append(tensor)


def reshaped(graph: Path, proto: onnx.ModelProto) -> None:
    tensor = next(t for t in proto.graph.initializer if t.name == "lm_head.weight")
    tensor.dims[0] = -256


def huge(graph: Path, proto: onnx.ModelProto) -> None:
    tensor = next(t for t in proto.graph.initializer if t.name == "lm_head.weight")
    tensor.dims[0] = 1 << 62


HOSTILE: Mapping[str, tuple[Damage, str]] = {
    "parent": (external("location", "../model.onnx_data"), "outside the folder"),
    "absolute": (external("location", "/etc/passwd"), "outside the folder"),
    "backslash": (external("location", "..\\model.onnx_data"), "outside the folder"),
    "empty location": (external("location", ""), "outside the folder"),
    "no location": (removed("location"), "outside the folder"),
    "other file": (external("location", "other.bin"), "which is not there"),
    "a folder": (external("location", ".."), "outside the folder"),
    "link": (linked, "is a link"),
    "past the end": (external("offset", "99999999999"), "truncated"),
    "negative offset": (external("offset", "-64"), "not a number"),
    "words for an offset": (external("offset", "many"), "not a number"),
    "endless offset": (external("offset", "9" * 40), "not a number"),
    "no offset": (removed("offset"), "not a number"),
    "short": (external("length", "64"), "64 bytes of data"),
    "truncated": (truncated, "truncated"),
    "missing": (missing, "which is not there"),
    "twice": (twice, "twice"),
    "negative shape": (reshaped, "shape"),
    "overflowing shape": (huge, "bytes of data"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_external_data_is_not_believed(small: Model, case: str, tmp_path: Path) -> None:
    damage, message = HOSTILE[case]
    graph = copy(small, tmp_path) / "onnx/model.onnx"
    proto = onnx.load(graph, load_external_data=False)
    damage(graph, proto)
    graph.write_bytes(proto.SerializeToString())
    for attempt in (
        lambda: reader.decoded_tensors(graph),
        lambda: read(str(graph.parents[1])),
        lambda: OnnxRuntime.open(graph.parents[1], "cpu", THREADS),
        lambda: GenaiRuntime.open(graph.parents[1], "cpu", THREADS),
    ):
        with pytest.raises(InputError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)
        assert str(graph) in str(caught.value)
