"""The bytes of GGUF files, held against gguf-py."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from tokenizers import pre_tokenizers

from cgconvert.errors import InputError, UsageError
from cgconvert.formats.gguf.header import read_header
from cgconvert.formats.gguf.writer import file_name, plan
from cgconvert.model.tokenizer import END_OF_TEXT, AddedToken, Tokenizer
from cgconvert.runtimes.llamacpp import LlamaCppRuntime
from cgconvert.write.execute import execute
from tests.support.gguf_models import ROWS, converted, random_checkpoint, tokenizer


@pytest.fixture(scope="module")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    return functools.partial(converted, tmp_path_factory.mktemp("gguf"))


def test_same_bytes_whatever_the_chunks(
    tmp_path: Path, convert: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = random_checkpoint(64)
    monkeypatch.setattr("cgconvert.write.plan.CHUNK_BYTES", 5000)
    for type_ in ("F16", "Q4_0"):
        output = tmp_path / file_name(checkpoint, type_)
        execute(plan(checkpoint, output, type=type_))
        assert output.read_bytes() == convert(type_).read_bytes()


@pytest.mark.parametrize("type_", ["F16", "Q8_0"])
def test_gguf_py_writes_the_same_file(
    type_: str, tmp_path: Path, convert: Callable[..., Path]
) -> None:
    """What gguf-py makes of our metadata and tensors, tensor data and padding included."""
    ours = gguf.GGUFReader(convert(type_))
    output = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(output, "phi2")
    for field in ours.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        writer.add_key_value(field.name, field.contents(), *field.types[:2])
    for tensor in ours.tensors:
        writer.add_tensor(tensor.name, np.asarray(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert output.read_bytes() == convert(type_).read_bytes()


def test_metadata_describe_the_model(convert: Callable[..., Path]) -> None:
    metadata = dict(read_header(convert("Q8_0", 80)).metadata)
    tokens = metadata.pop("tokenizer.ggml.tokens")
    types = metadata.pop("tokenizer.ggml.token_type").tolist()
    assert metadata.pop("tokenizer.ggml.suppress_tokens").tolist() == list(
        range(tokenizer().size, ROWS)
    )
    assert metadata.pop("tokenizer.ggml.merges")[0] == " ".join(tokenizer().merges[0])
    end = tokenizer().eos_token_id
    assert metadata == {
        "general.architecture": "phi2",
        "general.type": "model",
        "general.name": "codegen-9M-multi",
        "general.basename": "codegen",
        "general.size_label": "9M",
        "general.finetune": "multi",
        "general.tags": ["text-generation", "code", "codegen"],
        "general.file_type": 7,
        "general.quantization_version": 2,
        "phi2.context_length": 256,
        "phi2.embedding_length": 320,
        "phi2.feed_forward_length": 1280,
        "phi2.block_count": 2,
        "phi2.attention.head_count": 4,
        "phi2.attention.head_count_kv": 4,
        "phi2.attention.layer_norm_epsilon": float(np.float32(1e-5)),
        "phi2.rope.dimension_count": 64,
        "phi2.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": end,
        "tokenizer.ggml.eos_token_id": end,
        "tokenizer.ggml.eot_token_id": end,
        "tokenizer.ggml.unknown_token_id": end,
        "tokenizer.ggml.padding_token_id": end,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
    }
    assert len(tokens) == len(types) == len(set(tokens)) == ROWS
    assert (tokens[end], types[end]) == ("<|endoftext|>", 3)
    assert {types[index] for index in tokenizer().whitespace_ids} == {4}
    assert set(types[tokenizer().size :]) == {5}
    assert tokens[-1] == f"[PAD{ROWS - 1}]"


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("gpt-j-6b", ("EleutherAI", "apache-2.0", ["en"], ["text-generation", "gptj"])),
        ("moss-moon-003-sft", ("fnlp", "agpl-3.0", ["en", "zh"], ["text-generation", "moss"])),
        ("pygmalion-6b", (None, None, None, ["text-generation"])),
    ],
)
def test_metadata_claim_what_is_known_of_a_name(
    name: str, entries: tuple[object, ...], tmp_path: Path
) -> None:
    output = tmp_path / "model.gguf"
    execute(plan(replace(random_checkpoint(64), name=name), output, type="F16"))
    metadata = read_header(output).metadata
    keys = ("organization", "license", "languages", "tags")
    assert tuple(metadata.get(f"general.{key}") for key in keys) == entries


def test_only_matrices_are_narrow(convert: Callable[..., Path]) -> None:
    for tensor in read_header(convert("Q4_0")).tensors:
        assert tensor.type == ("Q4_0" if len(tensor.shape) == 2 else "F32"), tensor.name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("codegen-350M-mono", "codegen-350M-mono-Q8_0.gguf"),
        ("my model", "my-model-Q8_0.gguf"),
    ],
)
def test_the_file_name_has_model_and_type(name: str, expected: str) -> None:
    assert file_name(replace(random_checkpoint(64), name=name), "Q8_0") == expected


def test_a_tokenizer_without_merges_is_refused_before_writing(tmp_path: Path) -> None:
    """llama.cpp refuses a file without them; one is enough."""
    checkpoint = random_checkpoint(64)
    letters = {token: n for n, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytes_only = Tokenizer.from_parts(letters, [], [AddedToken(len(letters), END_OF_TEXT, True)])
    bare = replace(checkpoint, tokenizer=bytes_only)
    with pytest.raises(InputError, match=r"^random: its tokenizer has no merges.*`tokenizer`"):
        plan(bare, tmp_path / "bare.gguf")
    one = {**letters, "ab": len(letters)}
    added = [AddedToken(len(one), END_OF_TEXT, True)]
    merging = replace(checkpoint, tokenizer=Tokenizer.from_parts(one, [("a", "b")], added))
    output = tmp_path / "merging.gguf"
    execute(plan(merging, output))
    runtime = LlamaCppRuntime.open(output, "cpu", 1)
    assert runtime.tokenize("abc") == merging.tokenizer.encode("abc")
    runtime.close()


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(UsageError, match="Q9_9"):
        plan(random_checkpoint(64), Path("x.gguf"), type="Q9_9")
