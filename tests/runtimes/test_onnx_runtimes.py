"""onnxruntime and onnxruntime-genai behind the one interface, on whole and on broken folders."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cgconvert.errors import InputError, MissingRuntimeError, UsageError
from cgconvert.runtimes.genai import GenaiRuntime
from cgconvert.runtimes.generate import generate
from cgconvert.runtimes.onnxruntime import OnnxRuntime
from cgconvert.runtimes.runtime import Runtime
from tests.support.greedy_tokens import assert_same_tokens
from tests.support.onnx_models import THREADS, Model, copy, relative_error

ROUNDING = 1e-4
"""How much the logits (standard deviation 0.3) of two runtimes may differ; 2e-6 was measured."""


def test_the_context_can_be_filled(small: Model) -> None:
    ids = np.random.default_rng(1).integers(0, 4000, size=128).tolist()
    for kind in (OnnxRuntime, GenaiRuntime):
        runtime = kind.open(small.artefact("model"), "cpu", THREADS)
        assert runtime.n_positions == 128
        runtime.feed(ids[:-1])
        last = runtime.feed(ids[-1:])
        assert relative_error(last, small.logits(ids)[-1:]) <= 1e-5
        with pytest.raises(UsageError, match="129 tokens are more than the model's context of 128"):
            runtime.feed([1])


def test_genai_gives_all_logits_and_the_same_tokens(small: Model) -> None:
    folder = small.artefact("model")
    genai, plain = (k.open(folder, "cpu", THREADS) for k in (GenaiRuntime, OnnxRuntime))
    for ids in small.prompts():
        genai.reset()
        logits = np.concatenate([genai.feed(ids[:2]), genai.feed(ids[2:])])
        assert relative_error(logits, small.logits(ids)) <= 1e-5
        tokens, expected = (greedy(runtime, ids) for runtime in (genai, plain))
        assert len(expected) == 32
        logits = small.logits([*ids, *expected])[len(ids) - 1 : -1]
        assert_same_tokens(tokens, expected, logits, ROUNDING)
    assert genai.feed([]).shape == plain.feed([]).shape == (0, 4096)


def greedy(runtime: Runtime, ids: list[int]) -> list[int]:
    return list(generate(runtime, ids, 32, tokenizer_size=4000, eos_token_ids=()))


def test_genais_own_loop_with_a_shared_cache_is_transformers(small: Model) -> None:
    """past_present_share_buffer, which genai_config.json asks for, and without it."""
    import onnxruntime_genai as og

    ids = small.prompts()[1]
    expected = small.theirs.generate(
        torch.tensor([ids]), max_new_tokens=32, do_sample=False, eos_token_id=None,
        pad_token_id=0,
    )[0].tolist()  # fmt: skip
    folder = small.artefact("model")
    config = json.loads((folder / "genai_config.json").read_text())
    assert config["search"]["past_present_share_buffer"] is True
    loaded = og.Model(str(folder))
    for options in ({}, {"past_present_share_buffer": False}):
        parameters = og.GeneratorParams(loaded)
        parameters.set_search_options(max_length=len(expected), **options)
        generator = og.Generator(loaded, parameters)
        generator.append_tokens(np.array(ids, dtype=np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        tokens = generator.get_sequence(0).tolist()
        assert tokens[: len(ids)] == ids
        logits = small.logits(expected)[len(ids) - 1 : -1]
        assert_same_tokens(tokens[len(ids) :], expected[len(ids) :], logits, ROUNDING)


@pytest.mark.parametrize("kind", [OnnxRuntime, GenaiRuntime])
def test_the_runtime_uses_the_artefacts_own_tokenizer(small: Model, kind: type[Runtime]) -> None:
    runtime = kind.open(small.artefact("model"), "cpu", THREADS)
    tokenizer = small.checkpoint.tokenizer
    text = "def hello(x):\n        return x + 1\n\t\tfoo<|endoftext|>é"
    assert runtime.tokenize(text) == tokenizer.encode(text)
    assert runtime.detokenize(tokenizer.encode(text)) == text
    assert runtime.eos_token_ids == (tokenizer.eos_token_id,)


@pytest.mark.parametrize("kind", [OnnxRuntime, GenaiRuntime])
def test_a_folder_of_links_as_in_the_hubs_cache_runs(
    small: Model, kind: type[Runtime], tmp_path: Path
) -> None:
    """A snapshot's files are links into one folder of blobs."""
    folder, blobs = copy(small, tmp_path), tmp_path / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(f for f in folder.rglob("*") if f.is_file())):
        file.rename(blobs / str(number))
        file.symlink_to(os.path.relpath(blobs / str(number), file.parent))
    ids = small.prompts()[1]
    logits = kind.open(folder, "cpu", THREADS).feed(ids)
    assert relative_error(logits, small.logits(ids)) <= 1e-5


@pytest.mark.parametrize("kind", [OnnxRuntime, GenaiRuntime])
def test_a_damaged_graph_is_reported_in_one_line(
    small: Model, kind: type[Runtime], tmp_path: Path
) -> None:
    folder = copy(small, tmp_path)
    graph = folder / "onnx/model.onnx"
    whole = graph.read_bytes()
    rng = np.random.default_rng(3)
    flips = [bytearray(whole) for _ in range(30)]
    for flipped in flips:
        flipped[rng.integers(len(whole))] ^= 1 << rng.integers(8)
    messages = []
    for content in (b"", b"<html>", whole[:100], whole[: len(whole) // 2], *map(bytes, flips)):
        graph.write_bytes(content)
        try:  # a flipped bit in a name or a label can leave a graph that still runs
            kind.open(folder, "cpu", THREADS).feed([1, 2])
        except InputError as error:
            messages.append(str(error))
    assert len(messages) >= 4 + len(flips) // 2
    assert all(str(folder) in line and "\n" not in line for line in messages)


def test_several_graphs_are_named_and_need_a_choice(small: Model, tmp_path: Path) -> None:
    folder = copy(small, tmp_path)
    float16_folder = small.artefact("model_fp16")
    for name in ("model_fp16.onnx", "model_fp16.onnx_data"):
        (folder / "onnx" / name).write_bytes((float16_folder / "onnx" / name).read_bytes())
    with pytest.raises(InputError, match=r"onnx/model.onnx, .*/copy/onnx/model_fp16.onnx"):
        OnnxRuntime.open(folder)
    chosen = OnnxRuntime.open(folder / "onnx/model.onnx", "cpu", THREADS)
    assert chosen.n_positions == 128


@pytest.mark.parametrize("name", ["../copy/onnx/model.onnx", "onnx/none.onnx", 5, None])
def test_genai_runs_no_graph_outside_its_folder(small: Model, name: object, tmp_path: Path) -> None:
    folder = copy(small, tmp_path)
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["filename"] = name
    (folder / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="names the graph"):
        GenaiRuntime.open(folder)


@pytest.mark.parametrize(("module", "kind", "package"), [
    ("onnxruntime", OnnxRuntime, "onnxruntime"),
    ("onnxruntime_genai", GenaiRuntime, "onnxruntime-genai"),
])  # fmt: skip
def test_an_absent_runtime_is_named(
    module: str, kind: type[Runtime], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingRuntimeError, match=f"install '{package}>="):
        kind.load(Path("nowhere"))
