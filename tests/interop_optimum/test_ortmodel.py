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
from tests.support.greedy_tokens import assert_same_tokens

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
def theirs() -> Any:
    return CodeGenForCausalLM.from_pretrained(embedded.path(), torch_dtype=torch.float32).eval()


def test_folders_load_without_a_warning(
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
def test_greedy_tokens_are_those_of_transformers(
    folders: dict[str, Path], theirs: Any, text: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["model"])
    inputs = tokenizer(text, return_tensors="pt")
    assert inputs.input_ids[0].tolist() == read(embedded.NAME).tokenizer.encode(text)
    ours = ORTModelForCausalLM.from_pretrained(folders["model"])
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    expected = theirs.generate(**inputs, **options)[0]
    length = inputs.input_ids.shape[1]
    with torch.inference_mode():
        logits = theirs(expected[None]).logits[0, length - 1 : -1]
    tokens = ours.generate(**inputs, **options)[0, length:]
    assert_same_tokens(tokens.tolist(), expected[length:].tolist(), logits.numpy(), 1e-4)


def test_logits_are_those_of_transformers(folders: dict[str, Path], theirs: Any) -> None:
    inputs = AutoTokenizer.from_pretrained(folders["model"])(TEXTS[1], return_tensors="pt")
    with torch.inference_mode():
        expected = theirs(**inputs).logits
    for stem, bound in (("model", 1e-5), ("model_fp16", 5e-3), ("model_int8", 0.1)):
        loaded = ORTModelForCausalLM.from_pretrained(folders[stem], **VARIANTS[stem][1])
        error = (loaded(**inputs).logits - expected).norm() / expected.norm()
        assert error <= bound, stem


ROUNDING = {"model": 1e-4, "model_fp16": 0.05, "model_int8": 0.02, "model_q4": 0.02}
"""How much padding may change a logit, of which the largest is 16, or a mean log-probability.

It moves rotary positions, which float16 rounds: 7e-6 was measured in float32 and 0.008 in float16.
Where matrices have 8 and 4 bits their inputs are rounded to 8, so one that lies between two codes
may be another code: 8e-5 was measured.
"""


@pytest.mark.parametrize("stem", VARIANTS)
def test_greedy_tokens_of_a_left_padded_batch_are_those_of_each_prompt_alone(
    folders: dict[str, Path], stem: str
) -> None:
    folder, rounding = folders[stem], ROUNDING[stem]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.padding_side == "left"
    model = ORTModelForCausalLM.from_pretrained(folder, **VARIANTS[stem][1])
    options = {"max_new_tokens": NEW, "do_sample": False,
               "output_logits": True, "return_dict_in_generate": True}  # fmt: skip
    padded = tokenizer(list(TEXTS), return_tensors="pt", padding=True)
    assert padded.attention_mask.sum(1).unique().numel() == len(TEXTS)
    together = model.generate(**padded, **options)
    for i, text in enumerate(TEXTS):
        inputs = tokenizer(text, return_tensors="pt")
        alone = model.generate(**inputs, **options)
        expected = alone.sequences[0, inputs.input_ids.shape[1] :]
        row = together.sequences[i, padded.input_ids.shape[1] :]
        logits = torch.cat(alone.logits).float()
        assert_same_tokens(
            row[: len(expected)].tolist(), expected.tolist(), logits.numpy(), rounding
        )
        for step, token in enumerate(expected):
            assert (together.logits[step][i].float() - logits[step]).abs().max() <= rounding
            if row[step] != token:
                break  # a near tie: another text from here on
        else:
            assert (row[len(expected) :] == tokenizer.pad_token_id).all()


BEAMS = {"max_new_tokens": NEW, "do_sample": False,
         "output_scores": True, "return_dict_in_generate": True}  # fmt: skip


def as_good_as(
    score: float, sequences: torch.Tensor, scores: torch.Tensor, rounding: float, padding: int
) -> list[list[int]]:
    """The new tokens of those beams whose scores are this one but for rounding."""
    return [
        without_padding(sequence, padding)
        for sequence, other in zip(sequences, scores, strict=True)
        if abs(score - float(other)) <= rounding
    ]


def without_padding(sequence: torch.Tensor, padding: int) -> list[int]:
    tokens: list[int] = sequence.tolist()
    while tokens and tokens[-1] == padding:
        tokens.pop()
    return tokens


@pytest.mark.parametrize("stem", VARIANTS)
def test_the_best_beam_of_a_left_padded_batch_is_that_of_each_prompt_alone(
    folders: dict[str, Path], stem: str
) -> None:
    folder, rounding = folders[stem], ROUNDING[stem]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    padding = tokenizer.pad_token_id
    model = ORTModelForCausalLM.from_pretrained(folder, **VARIANTS[stem][1])
    padded = tokenizer(list(TEXTS), return_tensors="pt", padding=True)
    together = model.generate(**padded, **BEAMS, num_beams=3)
    for i, text in enumerate(TEXTS):
        inputs = tokenizer(text, return_tensors="pt")
        alone = model.generate(**inputs, **BEAMS, num_beams=3, num_return_sequences=3)
        score = float(together.sequences_scores[i])
        assert abs(score - float(alone.sequences_scores[0])) <= rounding
        beams = alone.sequences[:, inputs.input_ids.shape[1] :]
        row = without_padding(together.sequences[i, padded.input_ids.shape[1] :], padding)
        assert row in as_good_as(score, beams, alone.sequences_scores, rounding, padding)


def test_greedy_tokens_are_the_64_pinned_ones(folders: dict[str, Path], theirs: Any) -> None:
    """The tokens that every other runtime gives (tests/runtimes/test_greedy.py)."""
    pinned = json.loads((Path(__file__).parents[1] / "runtimes" / "greedy.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folders["model"])
    ours = ORTModelForCausalLM.from_pretrained(folders["model"])
    options = {"max_new_tokens": 64, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    for entry in pinned:
        inputs = tokenizer(entry["text"], return_tensors="pt")
        for model in (ours, theirs):
            generated = model.generate(**inputs, **options)[0]
            assert generated[inputs.input_ids.shape[1] :].tolist() == entry["tokens"]
    padded = tokenizer([entry["text"] for entry in pinned], return_tensors="pt", padding=True)
    assert padded.attention_mask.sum(1).unique().numel() > 3
    together = ours.generate(**padded, **options)[:, padded.input_ids.shape[1] :]
    assert together.tolist() == [entry["tokens"] for entry in pinned]


def test_beams_of_a_left_padded_batch_are_those_of_transformers(
    folders: dict[str, Path], theirs: Any
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["model"])
    padding = tokenizer.pad_token_id
    model = ORTModelForCausalLM.from_pretrained(folders["model"])
    padded = tokenizer(list(TEXTS), return_tensors="pt", padding=True)
    ours, expected = (
        searched.generate(**padded, **BEAMS, num_beams=4, num_return_sequences=count)
        for searched, count in ((model, 2), (theirs, 4))
    )
    scores = expected.sequences_scores.reshape(-1, 4)
    beams = expected.sequences.reshape(len(TEXTS), 4, -1)
    assert torch.allclose(ours.sequences_scores.reshape(-1, 2), scores[:, :2], atol=1e-4)
    for i, (row, score) in enumerate(zip(ours.sequences, ours.sequences_scores, strict=True)):
        likely = as_good_as(float(score), beams[i // 2], scores[i // 2], 1e-4, padding)
        assert without_padding(row, padding) in likely
