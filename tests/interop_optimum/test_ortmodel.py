"""ORTModelForCausalLM loads an ONNX folder as it is: no argument but the path, no warning.

optimum-onnx wants an older transformers than the rest, so this runs in an environment of its own
(tests/run.py). The oracle is that transformers' CodeGenForCausalLM.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer, CodeGenForCausalLM
from transformers.utils import logging as transformers_logging

from cgconvert import embedded
from cgconvert.formats.onnx.writer import plan
from cgconvert.formats.read import read
from cgconvert.write.execute import execute

TEXTS = (
    "def fibonacci(n):\n    ",
    "import os\n\n\ndef size(path):\n    return os.",
    "x",
)
NEW = 24

# What optimum has to be told to load the one graph of a folder in silence.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "model": ({}, {}),
    "model_fp16": ({"dtype": "float16"}, {"file_name": "model_fp16.onnx"}),
    "model_int8": ({"bits": 8}, {"file_name": "model_int8.onnx"}),
    "model_q4": ({"bits": 4}, {"file_name": "model_q4.onnx"}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    checkpoint = read(embedded.NAME)
    root = tmp_path_factory.mktemp("onnx")
    for stem, (options, _) in VARIANTS.items():
        execute(plan(checkpoint, root / stem, **options))
    return {stem: root / stem for stem in VARIANTS}


@pytest.fixture(scope="module")
def theirs() -> CodeGenForCausalLM:
    return CodeGenForCausalLM.from_pretrained(embedded.path(), torch_dtype=torch.float32).eval()


def test_it_loads_without_a_warning(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    transformers_logging.enable_propagation()
    with caplog.at_level(logging.INFO):  # what would be heard: here it has to guess the file
        ORTModelForCausalLM.from_pretrained(folders["model_fp16"])
    assert any("file_name" in record.message for record in caplog.records)
    caplog.clear()
    for stem, (_, arguments) in VARIANTS.items():
        with caplog.at_level(logging.INFO):
            loaded = ORTModelForCausalLM.from_pretrained(folders[stem], **arguments)
        assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == []
        assert Path(loaded.path).name == f"{stem}.onnx"
        assert loaded.can_use_cache


@pytest.mark.parametrize("text", TEXTS)
def test_the_same_tokens_as_transformers(
    folders: dict[str, Path], theirs: CodeGenForCausalLM, text: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["model"])
    given = tokenizer(text, return_tensors="pt")
    assert given.input_ids[0].tolist() == read(embedded.NAME).tokenizer.encode(text)
    ours = ORTModelForCausalLM.from_pretrained(folders["model"])
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    assert torch.equal(ours.generate(**given, **options), theirs.generate(**given, **options))


def test_logits_are_transformers(folders: dict[str, Path], theirs: CodeGenForCausalLM) -> None:
    given = AutoTokenizer.from_pretrained(folders["model"])(TEXTS[1], return_tensors="pt")
    with torch.inference_mode():
        expected = theirs(**given).logits
    for stem, bound in (("model", 1e-5), ("model_fp16", 5e-3), ("model_int8", 0.1)):
        loaded = ORTModelForCausalLM.from_pretrained(folders[stem], **VARIANTS[stem][1])
        error = (loaded(**given).logits - expected).norm() / expected.norm()
        assert error <= bound, stem


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("stem", VARIANTS)
def test_a_left_padded_batch_is_each_prompt_alone(
    folders: dict[str, Path], stem: str, beams: int
) -> None:
    folder = folders[stem]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.padding_side == "left"
    model = ORTModelForCausalLM.from_pretrained(folder, **VARIANTS[stem][1])
    options = {"max_new_tokens": NEW, "do_sample": False, "num_beams": beams}
    padded = tokenizer(list(TEXTS), return_tensors="pt", padding=True)
    assert padded.attention_mask.sum(1).unique().numel() == len(TEXTS)
    together = model.generate(**padded, **options)[:, padded.input_ids.shape[1] :]
    for text, row in zip(TEXTS, together, strict=True):
        given = tokenizer(text, return_tensors="pt")
        alone = model.generate(**given, **options)[0, given.input_ids.shape[1] :]
        assert torch.equal(row[: len(alone)], alone)
        assert (row[len(alone) :] == tokenizer.pad_token_id).all()


def test_64_pinned_tokens(folders: dict[str, Path], theirs: CodeGenForCausalLM) -> None:
    """The tokens that every other runtime gives (tests/test_greedy.py)."""
    pinned = json.loads((Path(__file__).parents[1] / "runtimes" / "greedy.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folders["model"])
    ours = ORTModelForCausalLM.from_pretrained(folders["model"])
    options = {"max_new_tokens": 64, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    for entry in pinned:
        given = tokenizer(entry["text"], return_tensors="pt")
        for model in (ours, theirs):
            done = model.generate(**given, **options)[0]
            assert done[given.input_ids.shape[1] :].tolist() == entry["tokens"]
    padded = tokenizer([entry["text"] for entry in pinned], return_tensors="pt", padding=True)
    assert padded.attention_mask.sum(1).unique().numel() > 3
    together = ours.generate(**padded, **options)[:, padded.input_ids.shape[1] :]
    assert together.tolist() == [entry["tokens"] for entry in pinned]


def test_beam_search_on_a_left_padded_batch_is_transformers(
    folders: dict[str, Path], theirs: CodeGenForCausalLM
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["model"])
    ours = ORTModelForCausalLM.from_pretrained(folders["model"])
    padded = tokenizer(list(TEXTS), return_tensors="pt", padding=True)
    options = {"max_new_tokens": NEW, "num_beams": 4, "num_return_sequences": 2}
    one, other = (
        model.generate(
            **padded, **options, do_sample=False, output_scores=True, return_dict_in_generate=True
        )
        for model in (ours, theirs)
    )
    assert torch.equal(one.sequences, other.sequences)
    assert torch.allclose(one.sequences_scores, other.sequences_scores, atol=1e-4)
