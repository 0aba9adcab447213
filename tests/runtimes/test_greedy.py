"""One text from every runtime: 64 greedy tokens of the embedded model, pinned in greedy.json.

The prompts are those whose best two logits stay further apart (`margin`) than the runtimes' noise
all along. optimum's ORTModelForCausalLM is held to the same file in interop_optimum/, and
transformers.js in interop_node/.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import onnxruntime_genai as genai
import pytest
import torch

from cgconvert import embedded
from cgconvert.formats.read import read
from cgconvert.runtimes import open_runtime
from cgconvert.runtimes.generate import generate
from cgconvert.write.execute import execute
from tests.support import plans

PINNED = json.loads((Path(__file__).parent / "greedy.json").read_text())
NEW = 64


def test_the_pinned_tokens_are_transformers() -> None:
    """From the original weights, so that nothing of ours is part of the expectation."""
    from transformers import AutoTokenizer, CodeGenForCausalLM

    model = CodeGenForCausalLM.from_pretrained(embedded.path(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(embedded.path())
    for pinned in PINNED:
        inputs = tokenizer(pinned["text"], return_tensors="pt")
        ids = model.generate(
            **inputs, max_new_tokens=NEW, do_sample=False, pad_token_id=tokenizer.eos_token_id
        )[0]
        assert ids[inputs.input_ids.shape[1] :].tolist() == pinned["tokens"]
        with torch.inference_mode():
            logits = model(ids[None]).logits[
                0, inputs.input_ids.shape[1] - 1 : -1, : len(tokenizer)
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
def test_every_runtime_generates_the_pinned_tokens(kind: str, name: str, tmp_path: Path) -> None:
    checkpoint = read(embedded.NAME)
    plan = {
        "huggingface": lambda: plans.to_hf(checkpoint, tmp_path / "hf", dtype="float32"),
        "onnx": lambda: plans.to_onnx(checkpoint, tmp_path / "onnx"),
        "gguf": lambda: plans.to_gguf(checkpoint, tmp_path / "x.gguf", type="F32"),
    }[kind]()
    execute(plan)
    runtime = open_runtime(kind, plan.output, "cpu", name=name)
    try:
        for pinned in PINNED:
            ids = runtime.tokenize(pinned["text"])
            tokens = list(
                generate(
                    runtime,
                    ids,
                    NEW,
                    tokenizer_size=runtime.tokenizer_size,
                    eos_token_ids=runtime.eos_token_ids,
                )
            )
            assert tokens == pinned["tokens"], pinned["text"]
    finally:
        runtime.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = read(embedded.NAME)
    plan = plans.to_onnx(checkpoint, tmp_path_factory.mktemp("batch") / "onnx")
    execute(plan)
    return plan.output


def test_onnxruntime_generates_the_pinned_tokens_in_a_left_padded_batch(folder: Path) -> None:
    """Fed as transformers does: the mask grows, and each row has its own positions."""
    session = onnxruntime.InferenceSession(str(folder / "onnx/model.onnx"))
    tokenizer = read(embedded.NAME).tokenizer
    prompts = [tokenizer.encode(pinned["text"]) for pinned in PINNED]
    width = max(map(len, prompts))
    tokens = np.array([[7] * (width - len(ids)) + ids for ids in prompts])
    mask = np.array([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    past = {
        value.name: np.zeros((len(prompts), value.shape[1], 0, value.shape[3]), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past")
    }
    generated = []
    for _ in range(NEW):
        positions = np.where(mask, mask.cumsum(axis=1) - 1, 1)[:, -tokens.shape[1] :]
        inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
        logits, *present = session.run(None, {**inputs, **past})
        past = dict(zip(past, present, strict=True))
        tokens = logits[:, -1, : tokenizer.size].argmax(-1)[:, None]
        generated.append(tokens[:, 0])
        mask = np.concatenate([mask, np.ones_like(tokens)], axis=1)
    assert np.stack(generated, axis=1).tolist() == [pinned["tokens"] for pinned in PINNED]


@pytest.mark.parametrize("share", [True, False])
def test_genai_generates_the_pinned_tokens_in_its_own_batch(folder: Path, share: bool) -> None:
    """It pads after the prompt (its own encode_batch) and takes logits at each row's last token."""
    model = genai.Model(str(folder))
    padded = genai.Tokenizer(model).encode_batch([pinned["text"] for pinned in PINNED]).as_numpy()
    count, width = padded.shape
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(
        batch_size=count, max_length=width + NEW, past_present_share_buffer=share
    )
    generator = genai.Generator(model, parameters)
    generator.append_tokens(padded)
    while not generator.is_done():
        generator.generate_next_token()
    for row, pinned in enumerate(PINNED):
        assert generator.get_sequence(row)[width:].tolist() == pinned["tokens"]
