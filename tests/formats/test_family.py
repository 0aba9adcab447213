"""GPT-J, CodeGen2 and MOSS become the same artefacts as the same model in CodeGen's layout."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, CodeGenForCausalLM, GPTJForCausalLM

import cgconvert
from cgconvert import embedded
from cgconvert.errors import InputError
from cgconvert.formats.read import ReadOptions, read
from cgconvert.model import family
from cgconvert.model.decoder import Checkpoint, Geometry
from cgconvert.runtimes import open_runtime
from cgconvert.testing import synthetic
from cgconvert.write.execute import execute
from tests.support import plans

TEXT = "def hello(x):\n        return x + 1\n\t\tfoo\n"
LAYOUTS = ("gptj", "moss", "codegen2")


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """The trained weights of the built-in model."""
    return load_file(embedded.path() / "model.safetensors")


@pytest.fixture(scope="module")
def sources(
    state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The built-in model in each layout of the family; CodeGen2's with two groups."""
    folder, geometry = tmp_path_factory.mktemp("family"), read(embedded.NAME).geometry

    def write(files: str, name: str, weights: synthetic.State, g: Geometry) -> Path:
        return synthetic.write(files, weights, g, folder / name, name, embedded.path())

    return {
        "gptj": write("gptj", "gptj-tiny", state, geometry),
        "moss": write("moss", "moss-tiny", state, geometry),
        "codegen2": write("torch", "codegen2-tiny", *synthetic.regroup(state, geometry, 2)),
    }


def read_as(name: str, source: Path) -> Checkpoint:
    """Read a source and rename it, because artefacts contain the name."""
    mp_num = 2 if source.name.startswith("codegen2") else None
    return replace(read(str(source), ReadOptions(mp_num=mp_num)), name=name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("type_", ["F16", "Q8_0"])
def test_the_gguf_file_is_that_of_codegens_layout(
    layout: str, type_: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    checkpoints = [read(embedded.NAME), read_as(embedded.NAME, sources[layout])]
    contents = []
    for number, checkpoint in enumerate(checkpoints):
        output = tmp_path / f"{number}.gguf"
        execute(plans.to_gguf(checkpoint, output, type=type_))
        contents.append(output.read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("target", ["codegen", "gptj", "phi"])
def test_the_weights_of_a_folder_are_those_of_codegens_layout(
    layout: str, target: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    for number, checkpoint in enumerate((read(embedded.NAME), read_as("x", sources[layout]))):
        execute(plans.to_hf(checkpoint, tmp_path / str(number), layout=target))
    weights = [(tmp_path / n / "model.safetensors").read_bytes() for n in "01"]
    assert weights[0] == weights[1]


def logits(model: Any, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        output: np.ndarray = model(torch.tensor([ids])).logits[0].float().numpy()
    return output


def run(folder: Path, ids: list[int]) -> np.ndarray:
    """Compute a folder's logits in the runtime that users have."""
    runtime = open_runtime("huggingface", folder)
    try:
        return runtime.feed(ids)
    finally:
        runtime.close()


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def test_the_logits_are_those_of_transformers_gptj(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    ids = read(embedded.NAME).tokenizer.encode(TEXT)
    expected = logits(GPTJForCausalLM.from_pretrained(sources["gptj"], dtype=torch.float32), ids)
    checkpoint = read(str(sources["gptj"]))
    for layout in ("codegen", "gptj", "phi"):
        output = tmp_path / layout
        execute(plans.to_hf(checkpoint, output, layout=layout, dtype="float32"))
        assert relative(run(output, ids), expected) <= 1e-5, layout


@pytest.mark.parametrize("name", ["gpt-j-6b", "codegen2-1B"])
def test_the_logits_of_a_published_geometry(name: str, tmp_path: Path) -> None:
    """One random layer of the published width, against transformers' class on the source."""
    geometry = replace(family.geometry(name), n_layer=1, vocab_size=4096, n_positions=64)
    state = dict(synthetic.RandomState(geometry, seed=5, sharpness=4))
    source = synthetic.write("safetensors", state, geometry, tmp_path, name, embedded.path())
    ids = np.random.default_rng(0).integers(0, 3900, size=20).tolist()
    oracle: Any = GPTJForCausalLM
    loadable = source
    if geometry.mp_num:  # transformers has four groups
        four = synthetic.regroup(state, geometry, 4)
        loadable = synthetic.write("safetensors", *four, tmp_path, "codegen", embedded.path())
        oracle = CodeGenForCausalLM
    expected = logits(oracle.from_pretrained(loadable, dtype=torch.float32), ids)
    checkpoint = read(str(source))
    assert checkpoint.geometry == geometry
    execute(plans.to_hf(checkpoint, tmp_path / "out", layout="phi", dtype="float32"))
    assert relative(run(tmp_path / "out", ids), expected) <= 1e-5


@pytest.mark.parametrize("layout", ["gptj", "moss"])
def test_other_layouts_are_verified_and_generate(
    layout: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    result = cgconvert.to_hf(str(sources[layout]), tmp_path / "out", layout="gptj")
    verification = cgconvert.verify(result.path)
    assert verification.passed, verification
    text = cgconvert.generate(result.path, "def hello(", max_new_tokens=4)
    assert text == cgconvert.generate(
        cgconvert.to_gguf(embedded.NAME, tmp_path / "codegen.gguf", type="F16").path,
        "def hello(",
        max_new_tokens=4,
    )


INFILLING = "def f():\n    <mask_1>\n    return x<|endoftext|><sep><mask_1><mask_22>"


def add_tokens(folder: Path, tokens: list[str], last_id: int) -> None:
    """Add tokens to a tokenizer.json in the order of descending ids, as CodeGen2 has them."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    content["added_tokens"] += [
        {"id": last_id - n, "content": tokens[n], **flags} for n in reversed(range(len(tokens)))
    ]
    path.write_text(json.dumps(content))


def test_the_tokens_for_infilling_survive(sources: dict[str, Path], tmp_path: Path) -> None:
    """CodeGen2's tokens fill the embedding to its last row, with the first mask there."""
    source = Path(shutil.copytree(sources["codegen2"], tmp_path / "codegen2-tiny"))
    rows = read(embedded.NAME).geometry.vocab_size
    first = read(embedded.NAME).tokenizer.size
    masks = [f"<mask_{n}>" for n in range(1, rows - first - 1)]
    add_tokens(source, [*masks, "<eom>", "<sep>"], last_id=rows - 1)
    expected = AutoTokenizer.from_pretrained(source)(INFILLING).input_ids
    assert expected.count(rows - 1) == 2
    assert {first, rows - 22} < set(expected)
    checkpoint = read(str(source), ReadOptions(mp_num=2))
    assert checkpoint.tokenizer.encode(INFILLING) == expected
    assert checkpoint.tokenizer.size == rows
    execute(plans.to_hf(checkpoint, tmp_path / "hf"))
    execute(plans.to_gguf(checkpoint, tmp_path / "model.gguf", type="F16"))
    for format_, path in (("huggingface", tmp_path / "hf"), ("gguf", tmp_path / "model.gguf")):
        runtime = open_runtime(format_, path)
        assert runtime.tokenize(INFILLING) == expected, format_
        runtime.close()


@pytest.mark.parametrize("end", ["<eom>", {"__type": "AddedToken", "content": "<eom>"}])
def test_the_slow_tokenizer_of_moss_is_read(
    end: object, sources: dict[str, Path], tmp_path: Path
) -> None:
    """It has a class of its own, vocab.json and merges.txt, and ends at <eom>."""
    source = Path(shutil.copytree(sources["moss"], tmp_path / "moss-tiny"))
    content = json.loads((source / "tokenizer.json").read_text())
    for path in source.glob("*token*"):
        path.unlink()
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    first = max(added.values()) + 1
    added |= {token: first + n for n, token in enumerate(("<eoh>", "<eom>", "<eot>"))}
    model = content["model"]
    vocabulary = {token: n for token, n in model["vocab"].items() if token not in added}
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (source / "vocab.json").write_text(json.dumps(vocabulary))
    (source / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    (source / "added_tokens.json").write_text(json.dumps(added))
    settings = {
        "auto_map": {"AutoTokenizer": ["tokenization_moss.MossTokenizer", None]},
        "bos_token": "<|endoftext|>",
        "eos_token": end,
        "tokenizer_class": "MossTokenizer",
    }
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = read(str(source)).tokenizer
    assert tokenizer.eos_token_id == added["<eom>"]
    assert tokenizer.encode(TEXT + "<eom>") == [
        *read(embedded.NAME).tokenizer.encode(TEXT),
        added["<eom>"],
    ]


def test_a_moss_without_its_tokenizer_gets_no_other(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    source = Path(shutil.copytree(sources["moss"], tmp_path / "moss-tiny"))
    for path in (*source.glob("*token*"), source / "vocab.json"):
        path.unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"MOSS's is its own; give a folder.*`tokenizer`"):
        read(str(source))
    assert read(str(source), ReadOptions(tokenizer=embedded.path())).tokenizer.size > 0
