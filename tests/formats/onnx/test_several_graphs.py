"""A repository with several graphs: the path of a graph works wherever a folder does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import cgconvert
from cgconvert.errors import InputError
from cgconvert.formats.read import describe, read
from cgconvert.formats.registry import find_all, identify
from cgconvert.write.execute import execute
from tests.support import plans

Make = Callable[..., Path]


@pytest.fixture
def one(make_checkpoint: Make, tmp_path: Path) -> Path:
    """A repository with one graph, as cgconvert writes it."""
    execute(plans.to_onnx(read(str(make_checkpoint())), tmp_path / "one"))
    return tmp_path / "one"


@pytest.fixture
def several(one: Path, make_checkpoint: Make, tmp_path: Path) -> Path:
    """A repository with three graphs, as the Hub's are."""
    for options in ({"bits": 4}, {"dtype": "float16"}):
        target = tmp_path / "other"
        execute(plans.to_onnx(read(str(one / "onnx" / "model.onnx")), target, **options))
        for path in (target / "onnx").iterdir():
            shutil.copy(path, one / "onnx")
        shutil.rmtree(target)
    return one.rename(tmp_path / "several")


def test_the_only_graph_and_its_folder_stand_for_the_artefact(one: Path) -> None:
    expected = read(str(one))
    for path in (one / "onnx", one / "onnx" / "model.onnx"):
        assert identify(path).path == one
        assert identify(path).manifest is not None
        assert [artefact.path for artefact in find_all(path)] in ([one], [])
        checkpoint = read(str(path))
        assert (checkpoint.name, checkpoint.path) == (expected.name, expected.path)
        assert describe(str(path)).parameters == describe(str(one)).parameters


def test_a_folder_of_several_names_them(several: Path, tmp_path: Path) -> None:
    paths = [str(several / "onnx" / f"model{part}.onnx") for part in ("", "_fp16", "_q4")]
    for path in (several, several / "onnx"):
        with pytest.raises(InputError, match="has several graphs, give the path of one") as caught:
            read(str(path))
        assert str(caught.value).endswith(", ".join(paths))
        with pytest.raises(InputError, match="has several graphs"):
            describe(str(path))
        with pytest.raises(InputError, match="has several graphs"):
            next(cgconvert.stream_generate(path, "x", max_new_tokens=1))
        assert [str(artefact.path) for artefact in find_all(path)] == paths


@pytest.mark.parametrize("stem", ["model", "model_q4", "model_fp16"])
def test_the_path_of_a_graph_works_everywhere(
    stem: str, several: Path, make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = several / "onnx" / f"{stem}.onnx"
    reference = tmp_path / "source-safetensors" / "codegen-small-mono"
    description = cgconvert.inspect(graph)
    assert (description.name, len(description.tensors) > 10) == ("several", True)
    text = list(cgconvert.stream_generate(graph, "def f", max_new_tokens=2))
    assert text[0] == "def f"
    assert list(cgconvert.stream_generate(graph, "def f", max_new_tokens=2)) == text
    report = cgconvert.verify(graph, reference=reference, text_tokens=60).reports[0]
    failed = {check.name for check in report.checks if check.verdict.value == "FAIL"}
    assert not failed & {"weights.equal", "settings", "tokens", "witness.special_tokens"}, failed
    if stem == "model_q4":
        with pytest.raises(InputError, match="its weights are quantized"):
            cgconvert.to_gguf(graph, tmp_path / "out.gguf")
    else:
        cgconvert.to_gguf(graph, tmp_path / "out.gguf")
        cgconvert.quantize(graph, tmp_path / "q.gguf", bits=8, effort="fast")
        monkeypatch.chdir(several / "onnx")
        assert read(f"{stem}.onnx").name == "several"


def test_genai_runs_the_graph_that_its_configuration_names(several: Path) -> None:
    tokens = cgconvert.stream_generate(
        several / "onnx" / "model.onnx", "x", max_new_tokens=1, runtime="onnxruntime-genai"
    )
    assert next(tokens) == "x"
    with pytest.raises(InputError, match=r"is for model\.onnx, not model_q4\.onnx"):
        next(
            cgconvert.stream_generate(
                several / "onnx" / "model_q4.onnx", "x", runtime="onnxruntime-genai"
            )
        )


def test_a_graph_without_configuration_is_no_artefact(several: Path, tmp_path: Path) -> None:
    shutil.copytree(several / "onnx", tmp_path / "alone")
    for path in (tmp_path / "alone" / "model.onnx", tmp_path / "alone"):
        with pytest.raises(InputError, match="not an artefact"):
            identify(path)
    with pytest.raises(InputError, match=r"config\.json: cannot be read"):
        read(str(tmp_path / "alone" / "model.onnx"))
    assert find_all(tmp_path / "alone") == []
