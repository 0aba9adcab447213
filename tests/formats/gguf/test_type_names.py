"""The names of GGUF types: llama.cpp's for its own mixes only, and one name in every place."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import LlamaFileType

from cgconvert.errors import UsageError
from cgconvert.formats.gguf.header import GgufHeader, TensorInfo, read_header
from cgconvert.formats.gguf.type_names import TYPE_KEY, contradictions, stored_name
from cgconvert.formats.gguf.types import TYPES
from cgconvert.formats.registry import identify
from cgconvert.model.decoder import Checkpoint
from cgconvert.verification.thresholds import known_bounds
from cgconvert.verification.verify import verify
from cgconvert.write.execute import execute
from tests.conftest import first_layers
from tests.support import plans


@pytest.fixture(scope="module")
def source() -> Checkpoint:
    return replace(first_layers(2), name="small")


@pytest.fixture(scope="module")
def header(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> GgufHeader:
    path = tmp_path_factory.mktemp("header") / "model.gguf"
    execute(plans.to_gguf(source, path, type="Q4_K_M"))
    return read_header(path)


@pytest.mark.parametrize("type_", TYPES)
def test_a_mix_of_llama_cpp_has_its_name_everywhere(
    type_: str, source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plans.to_gguf(source, type=type_)
    assert (plan.output.name, plan.type) == (f"small-{type_}.gguf", type_)
    manifest = execute(plan)
    metadata = read_header(plan.output).metadata
    assert TYPE_KEY not in metadata
    assert metadata["general.file_type"] == TYPES[type_].number
    assert identify(plan.output).type == manifest.type == type_
    assert known_bounds()[f"gguf {type_}"]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"bits": 4}, "5.27bpw"),
        ({"bits": 4, "effort": "max"}, "5.27bpw"),
        ({"bits": 8}, "Q8_0"),
        ({"bits": 4, "effort": "fast"}, "Q4_K_M"),
        ({"bits": 4, "tensor_type": {"output.weight": "Q8_0"}}, "5.27bpw"),
        ({"bpw": 4.85}, "4.85bpw"),
        ({"bpw": 4.854}, "4.85bpw"),
        ({"bpw": 16}, "8.50bpw"),
        ({"bpw": 16, "tensor_type": {"*": "Q6_K"}}, "6.56bpw"),
        ({"bpw": 4.85, "effort": "fast"}, "Q4_0"),
        ({"max_size": "2MB"}, "4.00bpw"),
        ({"max_size": "2.01MB"}, "4.02bpw"),
        ({"max_kl": 0.01}, "kl0.01"),
        ({"max_kl": 2.5e-5}, "kl2.5e-05"),
        ({"type": "Q4_K_M"}, "Q4_K_M-cal"),
        ({"type": "Q4_0"}, "Q4_0-cal"),
        ({"type": "Q4_K_M", "effort": "fast"}, "Q4_K_M"),
        ({"type": "Q4_K", "tensor_type": {"*": "Q4_K"}}, "Q4_K-cal"),
        ({"type": "Q4_K", "tensor_type": {"*": "Q6_K"}}, "6.56bpw"),
        ({"type": "Q4_K", "tensor_type": {"*": "Q6_K"}, "effort": "fast"}, "Q6_K"),
        ({"type": "Q4_K", "tensor_type": {"blk.0.*": "Q8_0"}, "effort": "fast"}, "5.36bpw"),
    ],
)  # fmt: skip
def test_a_budget_names_the_file_before_anything_is_measured(
    options: dict[str, Any], name: str, source: Checkpoint
) -> None:
    plan = plans.quantize(source, **options)
    assert plan.output.name == f"small-{name}.gguf"
    assert plan.type == name
    assert known_bounds()[f"gguf {name}"] == known_bounds()["gguf Q4_K"]


def test_types_that_are_no_mix_are_named_by_their_bits(source: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    table = {"blk.0.*": "Q8_0"}
    plan = plans.quantize(source, path, type="Q4_K", tensor_type=table, effort="fast")
    manifest = execute(plan)
    tensors = [t for t in gguf.GGUFReader(path).tensors if len(t.shape) == 2]
    bits = 8 * sum(t.n_bytes for t in tensors) / sum(t.n_elements for t in tensors)
    assert identify(path).type == manifest.type == f"{bits:.2f}bpw"
    metadata = read_header(path).metadata
    assert metadata[TYPE_KEY] == manifest.type
    assert metadata["general.file_type"] == LlamaFileType.GUESSED | LlamaFileType.MOSTLY_Q4_K_S
    # In a process of its own: here the runtime may have silenced llama.cpp's log.
    load = f"import llama_cpp; llama_cpp.Llama({str(path)!r}, verbose=True, n_ctx=32)"
    log = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True, check=True)
    assert "(guessed) Q4_K - Small" in log.stderr
    report = verify(path, "gguf", manifest.type, source, "cpu", new_tokens=2, threads=1)
    assert report.passed
    assert report.artefact["type"] == manifest.type


def changed(header: GgufHeader, types: dict[str, str], **metadata: object) -> GgufHeader:
    """The header with other types of some matrices, of the sizes that they take."""

    def change(tensor: TensorInfo) -> TensorInfo:
        if tensor.name not in types:
            return tensor
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[types[tensor.name]]]
        nbytes = int(np.prod(tensor.shape)) // block * size
        return replace(tensor, type=types[tensor.name], nbytes=nbytes)

    entries = {**header.metadata, **{k.replace("__", "."): v for k, v in metadata.items()}}
    return replace(header, tensors=tuple(map(change, header.tensors)), metadata=entries)


def test_files_of_earlier_versions_are_named_by_what_they_hold(header: GgufHeader) -> None:
    """They have the number of a mix that is not theirs, and no name."""
    assert stored_name(header) == "Q4_K_M"
    mixed = changed(header, {"blk.0.attn_v.weight": "Q8_0", "blk.1.ffn_down.weight": "Q3_K"})
    assert (stored_name(mixed) or "").endswith("bpw")
    assert not contradictions(mixed)
    all_iq4 = {t.name: "IQ4_XS" for t in header.tensors if len(t.shape) == 2}
    assert stored_name(changed(header, all_iq4)) is None  # no type that is written here


@pytest.mark.parametrize(
    ("recorded", "is_kept"),
    [
        ("5.27bpw", True), ("5.30bpw", True), ("5.26bpw", False), ("4.00bpw", False),
        ("Q4_K_M-cal", True), ("Q4_K_S-cal", False), ("kl0.01", True), ("Q4_K_M", False),
        ("F16-cal", False), ("mine", False), (7, False),
    ],
)  # fmt: skip
def test_a_name_that_the_matrices_contradict_is_a_difference(
    recorded: object, is_kept: bool, header: GgufHeader
) -> None:
    assert (contradictions(changed(header, {}, cgconvert__type=recorded)) == []) == is_kept


@pytest.mark.parametrize("name", ["mine", "4.8bpw", "4.85", "F16-cal", "kl", "IQ4_XS"])
def test_other_names_have_no_bounds(name: str) -> None:
    assert f"gguf {name}" not in known_bounds()
    assert "onnx 4.85bpw" not in known_bounds()


def test_a_file_name_ends_in_gguf(source: Checkpoint) -> None:
    with pytest.raises(UsageError, match=r"a GGUF file's name ends in \.gguf"):
        plans.quantize(source, Path("small-5.27bpw"), bits=4)
