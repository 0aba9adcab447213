"""Hugging Face folders that are written: transformers loads them and computes the same numbers."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, CodeGenConfig, CodeGenForCausalLM

from cgconvert.errors import InputError, MissingRuntimeError, UsageError
from cgconvert.formats.huggingface import writer as huggingface
from cgconvert.formats.huggingface.layouts import LAYOUTS
from cgconvert.model.decoder import Checkpoint, Geometry, packed_qkv_row_indices, qkv_row_indices
from cgconvert.model.tensor import InMemoryTensor
from cgconvert.model.tensor_names import CODEGEN, PHI
from cgconvert.model.tokenizer import END_OF_TEXT, AddedToken, Tokenizer
from cgconvert.runtimes.transformers import TransformersRuntime
from cgconvert.write.plan import Plan
from tests.support.greedy_tokens import assert_same_tokens

GEOMETRY = Geometry(
    n_layer=2, n_embd=64, n_head=8, rotary_dim=4, n_positions=256, vocab_size=304, mp_num=4
)
IDS = torch.randint(0, 290, (2, 40), generator=torch.Generator().manual_seed(1))
TORCH = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
LARGE = 5 * 10**9


def make_model(geometry: Geometry, seed: int = 0) -> CodeGenForCausalLM:
    """A CodeGen with random weights large enough that every part of it matters."""
    config = CodeGenConfig(
        n_layer=geometry.n_layer, n_embd=geometry.n_embd, n_head=geometry.n_head,
        rotary_dim=geometry.rotary_dim, n_positions=geometry.n_positions,
        n_ctx=geometry.n_positions, vocab_size=geometry.vocab_size,
    )  # fmt: skip
    model: CodeGenForCausalLM = CodeGenForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 1.5 / parameter.shape[-1] ** 0.5 if parameter.ndim == 2 else 0.3
        # float16's numbers, so that a float16 folder holds them exactly.
        parameter.data = (noise * scale).half().float()
    return model


def make_tokenizer() -> Tokenizer:
    alphabet = {c: n for n, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    added = [AddedToken(256, END_OF_TEXT, True)]
    return Tokenizer.from_parts(alphabet, [], added).with_whitespace_runs()


def make_checkpoint(
    state: Mapping[str, torch.Tensor],
    geometry: Geometry = GEOMETRY,
    name: str = "codegen-350M-mono",
) -> Checkpoint:
    tensors = {key: InMemoryTensor(value) for key, value in state.items()}
    return Checkpoint(
        name=name, path=Path("nowhere"), layout="torch", config={"model_type": "codegen"},
        decoder=CODEGEN.decoder(geometry, tensors, "test"), tokenizer=make_tokenizer(), files=(),
    )  # fmt: skip


def contents(plan: Plan) -> dict[str, bytes]:
    """What the plan's files hold, chunk by chunk."""
    files = {}
    for file in plan.files:
        content = bytearray(file.size)
        content[: len(file.header)] = file.header
        for tensor_plan in file.tensors:
            for row in range(0, tensor_plan.source.shape[0], 7):
                arrays = tensor_plan.encoding.encode(tensor_plan.source.read(slice(row, row + 7)))
                for array_plan, array in zip(tensor_plan.arrays, arrays, strict=True):
                    data = array.contiguous().view(torch.uint8).numpy().tobytes()
                    start = array_plan.offset + row * array_plan.row_bytes
                    content[start : start + len(data)] = data
        assert len(content) == file.size
        files[file.path] = bytes(content)
    return files


def execute(plan: Plan) -> Path:
    for name, content in contents(plan).items():
        plan.output.mkdir(parents=True, exist_ok=True)
        (plan.output / name).write_bytes(content)
    return plan.output


def to_hf(
    checkpoint: Checkpoint, output: Path, dtype: str = "float16", layout: str = "codegen",
    max_shard_size: int = LARGE,
) -> Plan:  # fmt: skip
    return huggingface.plan(
        checkpoint, output, dtype=dtype, layout=layout, max_shard_size=max_shard_size
    )


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """PyTorch's threads get in one another's way on models this small: 40 times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> CodeGenForCausalLM:
    return make_model(GEOMETRY)


@pytest.fixture(scope="module")
def checkpoint(model: CodeGenForCausalLM) -> Checkpoint:
    return make_checkpoint(model.state_dict())


@pytest.fixture(scope="module", params=list(LAYOUTS))
def folder(
    request: pytest.FixtureRequest, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    output = tmp_path_factory.mktemp(request.param)
    return execute(to_hf(checkpoint, output, layout=request.param))


def logits(model: torch.nn.Module, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.inference_mode():
        output: torch.Tensor = model(ids).logits
    return output


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("dtype", TORCH)
def test_weights_are_bit_equal(
    model: CodeGenForCausalLM, checkpoint: Checkpoint, tmp_path: Path, dtype: str
) -> None:
    execute(to_hf(checkpoint, tmp_path, dtype))
    stored = load_file(tmp_path / "model.safetensors")
    expected = {name: t.to(TORCH[dtype]) for name, t in model.state_dict().items()}
    assert stored.keys() == expected.keys()
    for name, tensor in expected.items():
        assert stored[name].dtype == tensor.dtype
        assert torch.equal(stored[name], tensor), name
    loaded: torch.nn.Module = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is CodeGenForCausalLM
    assert loaded.dtype == TORCH[dtype]
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_the_logits_are_the_originals(model: CodeGenForCausalLM, folder: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert relative(logits(loaded), logits(model)) <= 1e-5


def test_the_first_lines_of_a_safetensors_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = execute(to_hf(checkpoint, tmp_path)) / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    ends = [entry["data_offsets"] for entry in header.values()]
    assert [0, *(end for _, end in ends)] == [*(start for start, _ in ends), ends[-1][1]]
    assert ends[-1][1] == len(content) - 8 - length == 2 * GEOMETRY.parameters
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert file.get_slice("lm_head.weight").get_shape() == [304, 64]


def test_the_output_does_not_depend_on_the_source_layout(
    model: CodeGenForCausalLM, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """8 groups, and Phi's layout read back, give the bytes that 4 groups give."""
    eight = dict(model.state_dict())
    repack = np.concatenate(qkv_row_indices(64, 4))[packed_qkv_row_indices(64, 8)]
    for i in range(2):
        name = f"transformer.h.{i}.attn.qkv_proj.weight"
        eight[name] = eight[name][repack]
    phi = load_file(execute(to_hf(checkpoint, tmp_path, layout="phi")) / "model.safetensors")
    tensors = {name: InMemoryTensor(tensor) for name, tensor in phi.items()}
    config = json.loads((tmp_path / "config.json").read_text())
    unpacked = replace(GEOMETRY, mp_num=0)
    sources = [
        make_checkpoint(eight, replace(GEOMETRY, mp_num=8)),
        replace(
            checkpoint, path=tmp_path, layout="phi", config=config,
            decoder=PHI.decoder(unpacked, tensors, "test"),
        ),
    ]  # fmt: skip
    for layout in LAYOUTS:
        expected = contents(to_hf(checkpoint, tmp_path / "out", layout=layout))
        for source in sources:
            assert contents(to_hf(source, tmp_path / "other", layout=layout)) == expected


def test_shards_hold_all_tensors_within_the_limit(
    model: CodeGenForCausalLM, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    limit = 20_000  # less than an embedding, more than most others
    plan = to_hf(checkpoint, tmp_path, max_shard_size=limit)
    execute(plan)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    count = len(shards)
    assert shards == [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    assert index["metadata"] == {"total_size": 2 * GEOMETRY.parameters}
    seen: dict[str, str] = {}
    for name in shards:
        tensors = load_file(tmp_path / name)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= limit
        seen |= dict.fromkeys(tensors, name)
    assert seen == index["weight_map"]
    assert seen.keys() == model.state_dict().keys()
    assert list(load_file(tmp_path / shards[0])) == ["transformer.wte.weight"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in loaded.state_dict().items())
    # A product may add up the same numbers otherwise where their memory is aligned otherwise.
    assert relative(logits(loaded), logits(model)) <= 1e-6


def test_a_shard_is_filled_to_the_byte(checkpoint: Checkpoint, tmp_path: Path) -> None:
    total = 2 * GEOMETRY.parameters
    names = [f.path for f in to_hf(checkpoint, tmp_path, max_shard_size=total).files]
    assert names[0] == "model.safetensors"
    names = [f.path for f in to_hf(checkpoint, tmp_path, max_shard_size=total - 1).files]
    assert names[:2] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def test_the_snippet_of_the_model_card_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (folder / "README.md").read_text()
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert snippet
    monkeypatch.chdir(folder)
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(snippet[1], {})
    assert printed.getvalue().startswith("def hello_world():")


def test_the_model_card_is_valid(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "bsd-3-clause"
    assert front["pipeline_tag"] == "text-generation"
    assert front["base_model"] == "Salesforce/codegen-350M-mono"
    assert "| attention heads | 8 of 8 |" in card


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("codegen-sql", "from the CodeGen checkpoint `codegen-sql`, a program synthesis model of"),
        ("gpt-j-tuned", "from the GPT-J checkpoint `gpt-j-tuned`, a language model ("),
        ("pygmalion-6b", "from `pygmalion-6b`, a language model with the decoder of CodeGen"),
    ],
)
def test_a_card_claims_no_base_and_no_license_of_a_fine_tune(
    name: str, sentence: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    card = contents(to_hf(replace(checkpoint, name=name), tmp_path))["README.md"].decode()
    front = yaml.safe_load(card.split("---\n")[1])
    assert not front.keys() & {"base_model", "license"}
    assert sentence in card


@pytest.mark.parametrize(
    ("name", "layout", "words"),
    [
        ("codegen-2B-nl", "codegen", "The weights are CodeGen's own, for `CodeGenForCausalLM`"),
        ("gpt-j-6b", "codegen", "The weights are laid out for `CodeGenForCausalLM`"),
        ("gpt-j-6b", "gptj", "The weights are GPT-J's own, for `GPTJForCausalLM`"),
        ("codegen-2B-nl", "gptj", "The weights are laid out for `GPTJForCausalLM`"),
    ],
)
def test_a_card_tells_a_models_own_layout(
    name: str, layout: str, words: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source = replace(checkpoint, name=name)
    assert words in contents(to_hf(source, tmp_path, layout=layout))["README.md"].decode()


@pytest.mark.parametrize(
    ("name", "base", "license_name"),
    [
        ("gpt-j-6B", "EleutherAI/gpt-j-6b", "apache-2.0"),
        ("moss-moon-003-sft", "fnlp/moss-moon-003-sft", "agpl-3.0"),
        ("codegen2-1B", "Salesforce/codegen2-1B", "apache-2.0"),
    ],
)
def test_a_card_names_the_published_base_and_its_license(
    name: str, base: str, license_name: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    card = contents(to_hf(replace(checkpoint, name=name), tmp_path))["README.md"].decode()
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["base_model"], front["license"]) == (base, license_name)


def test_ids_are_the_tokenizers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (256, 256)
    assert generation == {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
    assert config["dtype"] == config["torch_dtype"] == "float16"
    assert config["vocab_size"] == 304
    assert config["tie_word_embeddings"] is False


def test_settings_of_the_source_are_kept(checkpoint: Checkpoint, tmp_path: Path) -> None:
    odd = {"eos_token_id": 2, "attn_pdrop": 0.25, "initializer_range": float("nan"), "n_layer": 9}
    source = replace(checkpoint, config=odd)
    codegen, gptj, phi = (
        json.loads(contents(to_hf(source, tmp_path, layout=layout))["config.json"])
        for layout in LAYOUTS
    )
    assert codegen["attn_pdrop"] == gptj["attn_pdrop"] == phi["attention_dropout"] == 0.25
    assert codegen["initializer_range"] == phi["initializer_range"] == 0.02
    assert (codegen["eos_token_id"], codegen["n_layer"]) == (256, 2)


def test_a_rotary_fraction_that_rounds_down(tmp_path: Path) -> None:
    """int(44 * (30 / 44)) is 29, and so readers of Phi would turn 29 dimensions."""
    odd = replace(GEOMETRY, n_embd=176, n_head=4, rotary_dim=30, n_inner=4 * 176)
    model = make_model(odd)
    execute(to_hf(make_checkpoint(model.state_dict(), odd), tmp_path, "float32", "phi"))
    loaded: torch.nn.Module = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert relative(logits(loaded), logits(model)) <= 1e-5


def test_a_model_that_transformers_cannot_express_is_refused(tmp_path: Path) -> None:
    six = replace(GEOMETRY, n_embd=48, n_head=6, n_inner=192, mp_num=2)
    state = {
        name: torch.zeros(tensor.shape)
        for name, tensor in make_model(replace(six, n_head=4, mp_num=4)).state_dict().items()
    }
    source = make_checkpoint(state, six)
    with pytest.raises(InputError, match="6 heads do not divide into the 4 groups"):
        to_hf(source, tmp_path)
    for layout in ("gptj", "phi"):
        assert to_hf(source, tmp_path, layout=layout).options["layout"] == layout
    base = make_checkpoint(make_model(GEOMETRY).state_dict(), replace(GEOMETRY, rotary_base=1e6))
    for layout in ("codegen", "gptj"):
        with pytest.raises(InputError, match="rotary base is 1e\\+06"):
            to_hf(base, tmp_path, layout=layout)


def test_unknown_options_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='`dtype="int8"`'):
        to_hf(checkpoint, tmp_path, dtype="int8")
    with pytest.raises(UsageError, match='`layout="gpt2"`'):
        to_hf(checkpoint, tmp_path, layout="gpt2")
    with pytest.raises(UsageError, match="`max_shard_size=0`"):
        to_hf(checkpoint, tmp_path, max_shard_size=0)


def test_a_padded_batch_generates_what_each_text_does(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    texts = ["def f(x):\n    return", "a", "\t\tif x:"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    together = model.generate(**batch, max_new_tokens=12, do_sample=False)
    for text, row in zip(texts, together, strict=True):
        alone = model.generate(
            **tokenizer(text, return_tensors="pt"), max_new_tokens=12, do_sample=False
        )
        expected = alone[0][-12:].tolist()
        chosen_by = logits(model, alone)[0, -13:-1].numpy()
        assert_same_tokens(row[-12:].tolist(), expected, chosen_by, rounding=1e-4)


def test_the_runtime_gives_the_models_tokens_and_logits(
    model: CodeGenForCausalLM, folder: Path
) -> None:
    runtime = TransformersRuntime.open(folder, threads=2)
    assert torch.get_num_threads() == 2
    assert runtime.n_positions == 256
    assert runtime.eos_token_ids == (256,)
    text = "if x:\n        y\t\t\n" + END_OF_TEXT
    assert runtime.tokenize(text) == make_tokenizer().encode(text)
    assert runtime.detokenize(runtime.tokenize(text)) == text
    ids = IDS[0].tolist()
    expected = logits(model, IDS[:1])[0].numpy()
    for sizes in ([40], [1] * 40, [17, 1, 0, 22]):
        runtime.reset()
        parts = np.split(np.array(ids), np.cumsum(sizes)[:-1])
        actual = np.concatenate([runtime.feed(part.tolist()) for part in parts])
        assert actual.dtype == np.float32
        assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()
    with pytest.raises(UsageError, match="257 tokens are more"):
        runtime.feed([0] * 217)
    runtime.close()
    assert torch.get_num_threads() == 1


def test_the_runtime_refuses_damaged_folders(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        TransformersRuntime.open(tmp_path)
    execute(to_hf(checkpoint, tmp_path))
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(InputError, match="is truncated"):
        TransformersRuntime.open(tmp_path)
    # Other names: transformers would fill in random numbers.
    renamed = weights.replace(b"transformer.ln_f.bias", b"transformer.ln_f.bios")
    (tmp_path / "model.safetensors").write_bytes(renamed)
    with pytest.raises(InputError, match=r"transformer\.ln_f\.bias is missing"):
        TransformersRuntime.open(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(UsageError, match="device tpu"):
        TransformersRuntime.open(tmp_path, device="tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="device cuda"):
        TransformersRuntime.open(tmp_path, device="cuda")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingRuntimeError, match="install 'transformers>="):
        TransformersRuntime.open(tmp_path)
