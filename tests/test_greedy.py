"""One text from every runtime: 64 greedy tokens of the embedded model, pinned in greedy.json.

The prompts are those whose best two logits stay further apart (`margin`) than the runtimes' noise
all along. optimum's ORTModelForCausalLM is held to the same file in interop_optimum/.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cgconvert import convert, embedded
from cgconvert.checkpoint.read import read
from cgconvert.runtimes import open_runtime
from cgconvert.runtimes.generate import generate
from cgconvert.stream.execute import execute

PINNED = json.loads((Path(__file__).parent / "greedy.json").read_text())
NEW = 64


def test_the_pinned_tokens_are_transformers() -> None:
    """From the original weights, so that nothing of ours is part of the expectation."""
    from transformers import AutoTokenizer, CodeGenForCausalLM

    model = CodeGenForCausalLM.from_pretrained(embedded.path(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(embedded.path())
    for pinned in PINNED:
        given = tokenizer(pinned["text"], return_tensors="pt")
        done = model.generate(
            **given, max_new_tokens=NEW, do_sample=False, pad_token_id=tokenizer.eos_token_id
        )[0]
        assert done[given.input_ids.shape[1] :].tolist() == pinned["tokens"]
        with torch.inference_mode():
            logits = model(done[None]).logits[
                0, given.input_ids.shape[1] - 1 : -1, : len(tokenizer)
            ]
        best = logits.topk(2).values
        assert float((best[:, 0] - best[:, 1]).min()) == pytest.approx(pinned["margin"], abs=1e-3)
        assert pinned["margin"] > 0.02


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("huggingface", "transformers"),
        ("onnx", "onnxruntime"),
        ("onnx", "onnxruntime-genai"),
        ("gguf", "llama.cpp"),
    ],
)
def test_every_runtime_gives_them(kind: str, name: str, tmp_path: Path) -> None:
    checkpoint = read(embedded.NAME)
    plan = {
        "huggingface": lambda: convert.to_hf(checkpoint, tmp_path / "hf", dtype="float32"),
        "onnx": lambda: convert.to_onnx(checkpoint, tmp_path / "onnx"),
        "gguf": lambda: convert.to_gguf(checkpoint, tmp_path / "x.gguf", type="F32"),
    }[kind]()
    execute(plan, checkpoint)
    runtime = open_runtime(kind, plan.output, "cpu", name=name)
    try:
        for pinned in PINNED:
            ids = runtime.tokenize(pinned["text"])
            tokens = list(
                generate(runtime, ids, NEW, allowed=runtime.tokens, end_of_text=runtime.end_of_text)
            )
            assert tokens == pinned["tokens"], pinned["text"]
    finally:
        runtime.close()
