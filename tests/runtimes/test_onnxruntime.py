"""Decoding in one shared buffer, and logits for the last token alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from cgconvert.runtimes.genai import GenaiRuntime
from cgconvert.runtimes.onnxruntime import DTYPES, PAST, OnnxRuntime, SharedCache
from tests.support.onnx_models import THREADS, Model, relative_error

POSITIONS = 128


def opened(graph: Path, **options: Any) -> tuple[onnxruntime.InferenceSession, SharedCache]:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    for name, value in options.items():
        setattr(settings, name, value)
    session = onnxruntime.InferenceSession(str(graph), settings)
    caches = {
        value.name: ((1, value.shape[1], POSITIONS, value.shape[3]), DTYPES[value.type])
        for value in session.get_inputs()
        if value.name.startswith(PAST)
    }
    return session, SharedCache(session, caches, "cpu")


@pytest.mark.parametrize("kind", ["model", "model_fp16", "model_q4", "model_js"])
def test_the_shared_buffer_equals_a_cache_made_anew(small: Model, kind: str) -> None:
    """The same logits as with a cache that each run makes anew: prefill, a chunk, single tokens."""
    session, cache = opened(small.graph(kind))
    inputs = {value.name: value for value in session.get_inputs()}
    ids = small.prompts()[0]
    past: dict[str, Any] = {
        name: np.zeros((1, 4, 0, 64), np.float16 if "16" in value.type else np.float32)
        for name, value in inputs.items()
        if name.startswith(PAST)
    }
    total = 0
    for piece in (ids[:20], ids[20:30], *([token] for token in ids[30:])):
        total += len(piece)
        arrays = {
            "input_ids": np.array([piece]),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(total - len(piece), total)[None],
        }
        if "num_logits_to_keep" in inputs:
            arrays["num_logits_to_keep"] = np.array(0)
        expected, *present = session.run(None, {**arrays, **past})
        past = dict(zip(past, present, strict=True))
        logits = cache.feed(piece)
        assert logits.dtype == np.float32
        assert relative_error(logits, expected[0].astype(np.float32)) <= 1e-6
    assert cache.length == total == len(ids)


def test_a_step_allocates_nothing(small: Model) -> None:
    """What a step reads and writes is bound before the first: cache, token, position, logits."""
    session, cache = opened(small.graph("model"))
    ids = small.prompts()[0]
    cache.feed(ids[:4])
    places = set()
    for token in ids[4:8]:
        cache.feed([token])
        values = cache._binding.get_outputs()
        assert len(values) == len(session.get_outputs())
        assert values[0].shape() == [1, 4, POSITIONS, 64]
        places.add(tuple(value.data_ptr() for value in values))
    assert len(places) == 1


@pytest.mark.parametrize("kind", ["model", "model_js", "model_int8"])
@pytest.mark.parametrize("runtime_class", [OnnxRuntime, GenaiRuntime])
def test_feed_last_equals_the_last_row_of_feed(small: Model, runtime_class: Any, kind: str) -> None:
    runtime, runtime_of_all = (
        runtime_class.open(small.artefact(kind), "cpu", THREADS) for _ in range(2)
    )
    ids = small.prompts()[0]
    for piece in (ids[:20], ids[20:21], ids[21:30], ids[30:31]):
        last, every = runtime.feed_last(piece), runtime_of_all.feed(piece)
        assert last.shape == (4096,)
        assert every.shape == (len(piece), 4096)
        assert relative_error(last, every[-1]) <= (0.05 if kind == "model_int8" else 1e-5)


def test_a_prompt_needs_one_row_of_logits(small: Model, tmp_path: Path) -> None:
    """If the graph has the input for it, the head multiplies only the last token."""
    ids = small.prompts()[0]
    for kind, rows in (("model", len(ids)), ("model_js", 1)):
        prefix = str(tmp_path / kind)
        graph = small.graph(kind)
        session, cache = opened(graph, enable_profiling=True, profile_file_prefix=prefix)
        assert cache.feed(ids, keep=1).shape == (rows, 4096)
        events = json.loads(Path(session.end_profiling()).read_text())
        shapes = [
            event["args"]["output_type_shape"]
            for event in events
            if event["name"].startswith("lm_head") and event["name"].endswith("kernel_time")
        ]
        assert shapes == [[{"float": [1, rows, 4096]}]]


@pytest.mark.parametrize(("keep", "rows"), [(0, 17), (1, 1), (5, 5), (99, 17)])
def test_num_logits_to_keep_gives_as_many_rows(small: Model, keep: int, rows: int) -> None:
    """The input is a scalar in transformers.js and [1] in genai; 0 means all rows."""
    session, _ = opened(small.graph("model_js"))
    ids = small.prompts()[1]
    arrays: dict[str, Any] = {
        value.name: np.zeros((1, 4, 0, 64), np.float32)
        for value in session.get_inputs()
        if value.name.startswith(PAST)
    }
    arrays |= {
        "input_ids": np.array([ids]),
        "attention_mask": np.ones((1, len(ids)), np.int64),
        "position_ids": np.arange(len(ids))[None],
    }
    for value in (np.array(keep), np.array([keep])):
        logits = session.run(["logits"], {**arrays, "num_logits_to_keep": value})[0]
        assert logits.shape == (1, rows, 4096)
        assert relative_error(logits[0], small.logits(ids)[-rows:]) <= 1e-5
