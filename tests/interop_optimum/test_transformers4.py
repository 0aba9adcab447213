"""What to-hf writes, in transformers 4 as users still have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from cgconvert import embedded
from cgconvert.formats.read import read
from cgconvert.write.execute import execute
from tests.support import plans

TEXT = "def hello(x):\n        return x + 1\n\t\tfoo  # ünïcode\n"


@pytest.fixture(scope="module", params=["codegen", "gptj", "phi"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = read(embedded.NAME)
    output = tmp_path_factory.mktemp(request.param) / "hf"
    execute(plans.to_hf(checkpoint, output, layout=request.param))
    return output


def test_the_installed_transformers_is_version_4() -> None:
    assert transformers.__version__.startswith("4.5")


def test_the_snippet_of_the_model_card_runs(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    text = "def hello_world():"
    input_ids = tokenizer(text, return_tensors="pt").input_ids
    generated_ids = model.generate(input_ids, max_length=32)
    assert str(tokenizer.decode(generated_ids[0], skip_special_tokens=True)).startswith(text)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_the_tokenizer_gives_the_same_ids(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXT).input_ids
    assert ids == read(embedded.NAME).tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT


def test_the_logits_are_those_of_the_original(folder: Path) -> None:
    """The folder's against the original's, both in float32."""
    ids = torch.tensor([read(embedded.NAME).tokenizer.encode(TEXT)])
    with torch.inference_mode():
        logits = [
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(ids).logits
            for path in (embedded.path(), folder)
        ]
    error = (logits[0] - logits[1]).abs().max() / logits[0].abs().max()
    assert float(error) <= 1e-5
